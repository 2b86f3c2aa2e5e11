"""The corpus of the demo model is a folder of scripts, not a package: its folder is put on the path here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "ops" / "demo"))
