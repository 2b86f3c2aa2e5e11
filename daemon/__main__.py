"""The command `quantd` and `python -m daemon`: runs one subcommand and turns its failure into an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from daemon.cli import root
from daemon.errors import exit_code
from runtime.errors import QuantdError

EXIT_USAGE = 64
EXIT_INTERNAL = 70
EXIT_IO = 74
EXIT_MEMORY = 75
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with the exit code of the table in daemon/errors.py."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.  Failures are one line on stderr; a bug also shows where."""
    try:
        result = root.main(
            args=None if arguments is None else list(arguments), prog_name="quantd", standalone_mode=False
        )
    except click.UsageError as failure:
        failure.show()
        return EXIT_USAGE
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as failure:
        return _say(failure.format_message(), EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except QuantdError as failure:
        return _say(failure.message, exit_code(failure))
    except BrokenPipeError:
        # The reader of our output went away (`quantd ... | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IO
    except OSError as failure:
        name = f"{failure.filename}: " if failure.filename else ""
        return _say(f"{name}{failure.strerror or failure}", EXIT_IO)
    except MemoryError:
        return _say("not enough memory", EXIT_MEMORY)
    except Exception:  # noqa: BLE001  (the last border: a bug, reported with its place)
        traceback.print_exc()
        return _say("internal error; please report it with the lines above", EXIT_INTERNAL)
    return result if isinstance(result, int) else 0


def _say(message: str, code: int) -> int:
    click.echo(f"quantd: error: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
