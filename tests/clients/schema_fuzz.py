"""schemathesis against a real daemon: whatever the API page allows or nearly allows, no answer is a 5xx.

    make fuzz-api EXAMPLES=100      # examples for each operation

schemathesis lies in an environment of its own, as the clients do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from run import PYTHON_CLIENTS, python_of, start_daemon


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    PYTHON_CLIENTS["schemathesis"] = ["schemathesis>=4,<5"]
    program = python_of("schemathesis").with_name("schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        daemon, url = start_daemon(Path(folder))
        try:
            command = [
                program, "run", f"{url}/openapi.json", "--checks", "not_a_server_error",
                "--max-examples", asked.examples, "--seed", asked.seed, "--request-timeout", "30",
                "--continue-on-failure",
            ]  # fmt: skip
            environment = {
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schema_hooks",
                "PYTHONPATH": str(Path(__file__).resolve().parent),
            }
            return subprocess.run([*map(str, command)], check=False, env=environment).returncode
        finally:
            daemon.terminate()
            daemon.wait(30)


if __name__ == "__main__":
    sys.exit(main())
