"""Run triton_interpreter_*.py without a GPU, in processes that set TRITON_INTERPRET=1 before they import triton."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton has no build for this platform")


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("triton_interpreter_*.py")), ids=lambda p: p.stem)
def test_interpreted(file, tmp_path):
    report = tmp_path / "report.xml"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    assert int(suite.get("tests")) >= 50 and int(suite.get("skipped")) == 0
