"""Benchmarks of the ops: ``python -m benchmarks``, ``pytest benchmarks``, and on a GPU ``benchmarks.gpu_gate``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# tests/ is no package; its modules, of which cases.py is shared, are found as pytest finds them.
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))
