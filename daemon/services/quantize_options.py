"""What a QuantizeRequest asks for, checked, as the command line of the child: names become paths of the model folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from daemon.services.catalog import Catalog
from daemon.services.folder import SUFFIX
from daemon.services.host import not_found
from daemon.services.options import invalid
from quantd.v1 import quantize_service_pb2 as rpc

DEFAULT_RECIPE = "Q4_K_M"
MAX_THREADS = 256
MAX_RULES = 64
MAX_RULE_CHARS = 300
MAX_ADAPTERS = 8
MAX_TEXT_BYTES = 256 << 10
MIN_INCREASE_PERCENT, MAX_INCREASE_PERCENT = -100.0, 1e6
DAT_SUFFIX = ".dat"

# What `quantd quantize --calibrate` calls the text that comes with it.
BUILT_IN_TEXT = "built-in"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was not refused."""

    source: Path
    output: Path
    arguments: list[str]  # of the child, without the texts
    imatrix: Path | None  # that it makes
    names: dict[str, str] = field(default_factory=dict)  # path on this machine: how the client named it

    @property
    def made(self) -> tuple[Path, ...]:
        """Every file that the job makes under a name of its own."""
        return (self.output,) if self.imatrix is None else (self.output, self.imatrix)


def read_request(request: rpc.QuantizeRequest, catalog: Catalog) -> Asked:
    """Check everything that can be refused without opening the model.

    Raises ApiError INVALID_ARGUMENT, MODEL_NOT_FOUND, OUTPUT_EXISTS or PERMISSION_DENIED, naming the field.
    """
    if len(request.lora) > MAX_ADAPTERS:
        raise invalid("lora", f"must be at most {MAX_ADAPTERS} adapters, not {len(request.lora)}")
    source = _find_source(request.source, catalog)
    output = catalog.new_file(request.output, "output", replaces=request.force or request.dry_run)
    arguments = command_line(request, source, output)
    arguments += [f"--lora={_adapter(adapter, catalog)}" for adapter in request.lora]
    _check_calibration(request)
    names = {str(source): request.source, str(output): request.output}
    if request.imatrix:
        found = _find_imatrix(request.imatrix, catalog)
        arguments.append(f"--imatrix={found}")
        names[str(found)] = request.imatrix
    imatrix = _new_imatrix(request, output, catalog)
    if imatrix is not None:
        arguments.append(f"--save-imatrix={imatrix}")
        names[str(imatrix)] = request.save_imatrix
    return Asked(source, output, arguments, imatrix, names)


def command_line(request: rpc.QuantizeRequest, source: Path, output: Path) -> list[str]:
    """The child's arguments but for those that name further files.  Every text of the client is a value, --name=value."""
    if request.HasField("threads") and not 1 <= request.threads <= MAX_THREADS:
        raise invalid("threads", f"must be 1 to {MAX_THREADS}, not {request.threads}")
    recipe = request.recipe
    plain = recipe.lower().removeprefix("best-").replace("_", "")
    if recipe and not (len(recipe) <= 32 and plain.isalnum() and recipe.isascii()):
        raise invalid("recipe", "must be the name of a recipe, such as Q4_K_M")
    if request.HasField("memory_bytes") and request.memory_bytes <= 0:
        raise invalid("memory_bytes", f"must be above 0, not {request.memory_bytes}")
    if len(request.tensor_types) > MAX_RULES or any(
        len(one) > MAX_RULE_CHARS for one in request.tensor_types
    ):
        raise invalid(
            "tensor_types", f"must be at most {MAX_RULES} rules of at most {MAX_RULE_CHARS} characters"
        )
    arguments = ["quantize", str(source), str(output), f"--recipe={recipe or DEFAULT_RECIPE}"]
    arguments += [f"--tensor-type={rule}" for rule in request.tensor_types]
    for option, value in (
        ("output-type", request.output_type),
        ("embedding-type", request.embedding_type),
        ("attention-type", request.attention_type),
        ("threads", str(request.threads) if request.HasField("threads") else ""),
        ("memory", str(request.memory_bytes) if request.HasField("memory_bytes") else ""),
    ):
        if len(value) > MAX_RULE_CHARS:
            raise invalid(option.replace("-", "_"), "is too long")
        if value:
            arguments.append(f"--{option}={value}")
    for option in ("pure", "no_input_hashes", "force", "dry_run"):
        arguments += [f"--{option.replace('_', '-')}"] if getattr(request, option) else []
    arguments += _calibration(request)
    arguments += _verification(request)
    if any("\0" in argument for argument in arguments):
        raise invalid("tensor_types", "must not hold a NUL character")
    return arguments


def _calibration(request: rpc.QuantizeRequest) -> list[str]:
    _check_text("calibration_text", request.calibration_text)
    arguments = ["--no-error-feedback"] if request.no_error_feedback else []
    if request.calibration_text:
        return [*arguments, "--calibrate=/dev/stdin"]
    return [*arguments, f"--calibrate={BUILT_IN_TEXT}"] if request.calibrate else arguments


def _check_calibration(request: rpc.QuantizeRequest) -> None:
    if request.imatrix and (request.calibrate or request.calibration_text):
        raise invalid("imatrix", "give calibrate or imatrix, not both")
    if request.calibrate or (request.recipe.lower().startswith("best-") and not request.imatrix):
        return
    for name in ("calibration_text", "no_error_feedback", "save_imatrix"):
        if getattr(request, name):
            raise invalid(name, "is only used with calibrate, or with a recipe best-NAME and no imatrix")


def _verification(request: rpc.QuantizeRequest) -> list[str]:
    _check_text("verify_text", request.verify_text)
    if not request.HasField("max_increase_percent"):
        return []
    allowed = request.max_increase_percent
    if not request.verify_text:
        raise invalid("max_increase_percent", "is only used with verify_text")
    if not (math.isfinite(allowed) and MIN_INCREASE_PERCENT <= allowed <= MAX_INCREASE_PERCENT):
        raise invalid(
            "max_increase_percent",
            f"must be {MIN_INCREASE_PERCENT:g} to {MAX_INCREASE_PERCENT:.0f}, not {allowed:g}",
        )
    return [f"--max-increase={allowed!r}"]


def _check_text(name: str, text: str) -> None:
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise invalid(name, f"must be at most {MAX_TEXT_BYTES} bytes")


def _find_source(name: str, catalog: Catalog) -> Path:
    entry = catalog.find(name)
    found = entry.path if entry is not None else catalog.find_folder(name, "config.json")
    if found is None:
        raise not_found(name, "source")
    return found


def _find_imatrix(name: str, catalog: Catalog) -> Path:
    if name.endswith(DAT_SUFFIX):
        found = catalog.folder.find_plain(name)
    else:
        entry = catalog.folder.find(name)
        found = entry.path if entry is not None else None
    if found is None:
        raise not_found(name, "imatrix")
    return found


def _new_imatrix(request: rpc.QuantizeRequest, output: Path, catalog: Catalog) -> Path | None:
    name = request.save_imatrix
    if not name:
        return None
    suffix = DAT_SUFFIX if name.endswith(DAT_SUFFIX) else SUFFIX
    path = catalog.new_file(name, "save_imatrix", suffix=suffix)
    if path == output:
        raise invalid("save_imatrix", "must not be the name of the output")
    return path


def _adapter(adapter: rpc.LoraAdapter, catalog: Catalog) -> str:
    folder = catalog.find_folder(adapter.name, "adapter_config.json")
    if folder is None:
        raise not_found(adapter.name, "lora")
    return f"{folder}:{adapter.scale if adapter.HasField('scale') else 1.0!r}"
