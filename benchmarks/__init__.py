"""Benchmarks of the ops: ``python -m benchmarks``, ``pytest benchmarks``, and on a GPU ``benchmarks.gpu_gate``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# tests/ is no package: its cases.py is found through the path, as pytest finds it.
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))
