"""The benchmarks are scripts: their folder is put on the path, as running one does."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"))
