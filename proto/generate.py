"""Generate proto/gen from proto/quantd, or check that what is committed is current.

python proto/generate.py            write proto/gen
python proto/generate.py --check    exit with 1 and name the files that differ
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent
PACKAGES = (Path("quantd/kserve"), Path("quantd/v1"))


def generate(target: Path) -> None:
    """Writes the packages below `target`."""
    sources = sorted(
        str(source.relative_to(PROTO)) for package in PACKAGES for source in (PROTO / package).glob("*.proto")
    )
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{target}" for kind in ("mypy", "mypy_grpc")]
    tools = str(Path(sys.executable).parent)
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *sources],
        cwd=PROTO, check=True, env={"PATH": f"{tools}:/usr/bin:/bin"},
    )  # fmt: skip
    for package in (Path("quantd"), *PACKAGES):
        (target / package / "__init__.py").touch()


def main() -> int:
    """Exit status: 0 written or current, 1 not current."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    committed = PROTO / "gen"
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        if not arguments.check:
            shutil.rmtree(committed / "quantd", ignore_errors=True)
            shutil.copytree(fresh / "quantd", committed / "quantd")
            return 0
        names = {path.relative_to(fresh) for path in fresh.rglob("*.py*")}
        names |= {
            path.relative_to(committed) for path in committed.rglob("*.py*") if path.suffix in (".py", ".pyi")
        }
        stale = sorted(
            str(name)
            for name in names
            if not (fresh / name).is_file()
            or not (committed / name).is_file()
            or not filecmp.cmp(fresh / name, committed / name, shallow=False)
        )
    if stale:
        print("proto/gen is not current, run `make proto`:", *stale, sep="\n  ")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
