"""`quantd quantize`: a GGUF file or a Hugging Face folder to a smaller GGUF file."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.calibration import BUILT_IN, Calibration, measured
from daemon.cli.quantize_report import print_line, print_summary, reporter, result_facts
from daemon.cli.verification import Verification, read_verification
from daemon.sizes import parse_size
from quant.errors import QuantizeCancelledError
from quant.recipes import AUTO, DEFAULT_RECIPE, RECIPES
from runtime.errors import RequestError

if TYPE_CHECKING:
    from quant.compare import Divergence
    from quant.convert.lora import Adapter

EXIT_BEYOND_LIMIT = 1  # OUTPUT was made, but its perplexity rises by more than --max-increase


class _Command(click.Command):
    """Takes `--calibrate SOURCE OUTPUT` for what it means: an option without its value before the arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except click.MissingParameter:
            if "--calibrate" not in args:
                raise
            at = args.index("--calibrate")
            return super().parse_args(ctx, [*args[:at], f"--calibrate={BUILT_IN}", *args[at + 1 :]])


@click.command("quantize", cls=_Command)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    show_default=True,
    help=f"Mixture of types: {', '.join(RECIPES)}; best-NAME: the bytes of NAME where this model needs them.",
)
@click.option("--pure", is_flag=True, help="The recipe's main type for every matrix, without its exceptions.")
@click.option(
    "--output-type", metavar="TYPE", help="Type of the output matrix (output.weight, or the tied embedding)."
)
@click.option("--embedding-type", metavar="TYPE", help="Type of the token embedding.")
@click.option(
    "--attention-type",
    metavar="TYPE",
    help="Type of the attention's query, key, value and output matrices.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    metavar="REGEX=TYPE",
    multiple=True,
    help="Type of the tensors in whose name REGEX is found; repeat it, the first that fits decides.",
)
@click.option(
    "--lora",
    "adapters",
    metavar="DIR[:SCALE]",
    multiple=True,
    help="Merge a LoRA adapter (PEFT: adapter_config.json, adapter_model.safetensors) on the way; repeat it for more.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="With --recipe auto: memory in which OUTPUT must be servable, such as 8GiB [default: what is free now].",
)
@click.option(
    "--calibrate",
    is_flag=False,
    flag_value=BUILT_IN,
    metavar="[FILE]",
    help="Run a text through SOURCE (a GGUF file), weigh errors by what each column is multiplied with, and let those of a row make "
    "up for each other: FILE, or without one a short text that comes with quantd.",
)
@click.option(
    "--no-error-feedback",
    is_flag=True,
    help="With --calibrate: round every weight to its nearest level, without making up for the errors of others in the same row.",
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    help="Weigh errors by an imatrix file of llama.cpp (GGUF or .dat) instead.",
)
@click.option(
    "--save-imatrix",
    type=click.Path(path_type=Path),
    help="Write what --calibrate found: .dat in llama.cpp's older form, any other name as GGUF.",
)
@click.option(
    "--verify",
    "verify_path",
    metavar="TEXT",
    type=click.Path(path_type=Path),
    help="Compare OUTPUT with SOURCE on a text at the end, as quantd compare does.",
)
@click.option(
    "--max-increase",
    type=float,
    metavar="PERCENT",
    help="With --verify: exit with status 1 where the perplexity rises by more than this.",
)
@click.option("--threads", type=int, help="Threads to use, 1 to 256 [default: the usable cores].")
@click.option("--force", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option(
    "--no-input-hashes",
    is_flag=True,
    help="Do not hash the inputs: saves the time for it, but published checksums are not compared, the "
    "manifest lacks them, and a finished OUTPUT is not recognized.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only show the type and size of every tensor; OUTPUT is not written."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option(
    "--progress-json", is_flag=True, help="Print progress and result as one JSON object a line, for programs."
)
def command(  # noqa: PLR0917 - one parameter an option
    source: Path,
    output: Path,
    recipe: str,
    output_type: str | None,
    embedding_type: str | None,
    attention_type: str | None,
    tensor_types: tuple[str, ...],
    adapters: tuple[str, ...],
    memory: str | None,
    threads: int | None,
    *,
    calibrate: str | None,
    imatrix: Path | None,
    save_imatrix: Path | None,
    no_error_feedback: bool,
    verify_path: Path | None,
    max_increase: float | None,
    pure: bool,
    force: bool,
    no_input_hashes: bool,
    dry_run: bool,
    as_json: bool,
    progress_json: bool,
) -> None:
    """Make a smaller GGUF file OUTPUT from SOURCE.

    SOURCE is a GGUF file in F32, F16, BF16 or Q8_0 (of a split model: any of its files), or a Hugging Face folder with
    config.json, safetensors and tokenizer, which is converted on the way: no file lies between.

    Each tensor gets the type that llama-quantize gives it for the recipe.  OUTPUT appears under its name only when
    it is complete; an error or Ctrl-C leaves nothing behind.  After a kill or a power cut the same command goes on at
    the tensor where it was; on a finished OUTPUT it does nothing.  OUTPUT.manifest.json, and the file itself, say what it
    was made of: hashes of inputs and data, recipe, type and error of every tensor.

    A weight that is no finite number, or that is too large for its type, ends the work when its tensor is reached, by name and
    place, and leaves nothing.

    Which recipe: auto takes the best one that fits the memory.  Q4_K_M is the usual choice, Q5_K_M and Q6_K lose less and take
    more, Q8_0 is nearly the original.  best-Q4_K_M has the size of Q4_K_M and other types: each tensor in turn is quantized
    coarsely and the text of --calibrate, which should be of the kind that the model is for, shows what that does (minutes; an
    hour for 7 B).

    --calibrate brings a file closer to its original at the same size and speed; it takes a few thousand tokens of the text through
    SOURCE, and room beside OUTPUT while it works (730 MB for 7 B).  A text of the kind that the model is for does best.

    \b
    Examples:
      quantd quantize model-f16.gguf model-q4.gguf
      quantd quantize Llama-3.2-1B-Instruct/ llama.gguf --recipe Q5_K_M
      quantd quantize Qwen3-0.6B/ qwen.gguf --recipe auto --memory 1.5GiB --lora my-adapter/:0.8
      quantd quantize model-f16.gguf model.gguf --dry-run --tensor-type ffn_down=Q6_K
      quantd quantize model-f16.gguf model-q8.gguf --recipe Q8_0 --threads 4
      quantd quantize model-f16.gguf model-q4.gguf --recipe best-Q4_K_M --calibrate=sample.txt
      quantd quantize model-f16.gguf model-q4.gguf --imatrix imatrix.gguf --verify sample.txt --max-increase 3
    """
    from quant.policy import Overrides
    from quant.quantizer import Quantizer

    for_programs = as_json or progress_json
    divergence: Divergence | None = None
    try:
        overrides = Overrides.parse(
            pure=pure,
            output_type=output_type,
            embedding_type=embedding_type,
            attention_type=attention_type,
            tensor_types=tensor_types,
        )
        verification = read_verification(source, verify_path, max_increase, threads)
        calibration = Calibration(
            calibrate,
            imatrix,
            save_imatrix,
            feedback=not no_error_feedback,
            folder=output.parent,
            threads=threads,
            shows=not for_programs,
        )
        with (
            _stop_signals() as cancel,
            measured(source, recipe, overrides, calibration) as known,
        ):
            job = Quantizer(
                source,
                output,
                recipe,
                overrides=overrides,
                threads=threads,
                force=force or dry_run,
                hash_inputs=not no_input_hashes,
                adapters=_adapters(adapters),
                memory_bytes=_memory(memory, recipe),
                importance=known.importance,
                feedback=known.feedback,
                allocation=known.allocation,
            )
            if job.choice is not None and not for_programs:
                click.echo(job.choice.explanation, err=True)
            if dry_run:
                from daemon.cli.quantize_plan import show_plan

                show_plan(job.plan, as_json=as_json, as_events=progress_json)
                return
            with reporter(progress_json=progress_json) as report:
                result = job.run(report, cancel)
        if not for_programs:
            print_summary(result)
        if verification is not None:
            divergence = _verify(verification, output, progress_json=progress_json)
    except Exception as failure:
        if progress_json:
            _print_error(failure)
        raise
    if for_programs:
        facts = result_facts(result, _facts_of(divergence, max_increase))
        if progress_json:
            print_line({"event": "result", **facts})
        else:
            click.echo(json.dumps(facts))
    if divergence is not None:
        from daemon.cli.compare import exceeds, show

        if not for_programs:
            show(divergence, max_increase, as_json=False)
        if exceeds(divergence, max_increase):
            raise click.exceptions.Exit(EXIT_BEYOND_LIMIT)


def _verify(verification: Verification, output: Path, *, progress_json: bool) -> Divergence:
    def report(done: int, total: int) -> None:
        if progress_json:
            print_line({"event": "verifying", "chunks_done": done, "chunks_total": total})

    report(0, 0)  # OUTPUT is there
    return verification.run(output, report)


def _facts_of(divergence: Divergence | None, max_increase: float | None) -> dict[str, Any] | None:
    if divergence is None:
        return None
    from daemon.cli.compare import facts_of

    return facts_of(divergence, max_increase)


def _print_error(failure: Exception) -> None:
    from daemon.errors import to_api_error

    error = to_api_error(failure)
    print_line({"event": "error", "reason": error.reason, "message": error.message, "field": error.field})


def _adapters(texts: tuple[str, ...]) -> list[Adapter]:
    if not texts:
        return []
    from quant.convert.lora import Adapter

    return [Adapter.parse(text) for text in texts]


def _memory(text: str | None, recipe: str) -> int | None:
    if text is None:
        return None
    if recipe.lower() != AUTO:
        raise RequestError("memory", "memory: only --recipe auto chooses by memory")
    try:
        return parse_size(text)
    except ValueError as error:
        raise RequestError("memory", f"memory: {error}") from None


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C set the event, so that the work stops at a sound place; a second Ctrl-C interrupts at once."""
    cancel = threading.Event()
    interrupted = False

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = number == signal.SIGINT
        cancel.set()

    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield cancel
    except QuantizeCancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
