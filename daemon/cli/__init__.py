"""The root of the command line.  Each subcommand lives in daemon/cli/<name>.py as `command` and is imported when used."""

from __future__ import annotations

import importlib
import importlib.util

import click

# What `quantd --help` says of each, so that help needs none of the modules.
SUMMARIES = {
    "serve": "Serve a model over gRPC and the OpenAI API.",
    "run": "Ask a model once, or chat with it at the terminal.",
    "pull": "Download a model from the Hugging Face Hub or an Ollama registry.",
    "create": "Make a model of the store from a Modelfile.",
    "list": "List the models that can be served by name.",
    "show": "Show what a model is: file, defaults, template, license.",
    "cp": "Give a model a second name.",
    "rm": "Remove models from the store.",
    "ps": "List the models in the memory of the running daemon.",
    "stop": "Take a model out of the memory of the running daemon.",
    "quantize": "Make a smaller GGUF file from an F32, F16 or BF16 one.",
    "perplexity": "Measure how well a model predicts a text.",
    "compare": "Measure how far a quantized model is from its original.",
    "verify": "Check a GGUF file: structure, finite blocks, checksum.",
    "tokenize": "Split a text into token ids.",
    "plan": "Say what memory serving a model takes, and whether it fits.",
    "inspect": "Show what a GGUF file holds.",
    "bench": "Measure prefill and decode speed of a model.",
    "key": "Make, list and remove API keys.",
    "gateway": "Run the HTTP gateway alone, against a remote daemon.",
    "version": "Show versions and what this CPU can do.",
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when that subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for name in SUMMARIES if importlib.util.find_spec(f"daemon.cli.{name}") is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"daemon.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"daemon.cli.{cmd_name}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self.list_commands(ctx)])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command explains itself: quantd COMMAND --help",
)
def root() -> None:
    """quantd serves language models on machines with 8 GB of memory and no GPU.

    \b
    Make a model smaller, look at what it needs, talk to it, serve it:
      quantd quantize model-f16.gguf model-q4.gguf --recipe Q4_K_M
      quantd plan model-q4.gguf
      quantd run model-q4.gguf "Why is the sky blue?"
      quantd serve model-q4.gguf
    """
