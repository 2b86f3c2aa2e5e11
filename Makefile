# Everything a developer or a first user needs.  `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

native: ## build runtime/_native in place (for work on the native core without an install)
	cmake -S runtime/native -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=$(CURDIR) \
	  $(NATIVE_FLAGS) > build-native.log 2>&1 || { cat build-native.log; rm -f build-native.log; exit 1; }
	@rm -f build-native.log
	cmake --build build/native && cmake --install build/native > /dev/null

.PHONY: help native

proto: ## regenerate proto/gen from proto/quantd
	rm -rf proto/gen/quantd && mkdir -p proto/gen/quantd
	cd proto && $(PROTO_PYTHON) -m grpc_tools.protoc -I. --python_out=gen --grpc_python_out=gen \
	  --mypy_out=gen --mypy_grpc_out=gen quantd/v1/*.proto
	find proto/gen/quantd -type d -exec touch {}/__init__.py \;
PROTO_PYTHON ?= $(CURDIR)/$(BIN)/python
.PHONY: proto
