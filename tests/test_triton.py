"""The Triton kernels without a GPU: triton_interpreter*.py, each in a process that sets TRITON_INTERPRET=1 first."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton has no build for this platform")


@pytest.mark.parametrize(
    "name", ["triton_interpreter.py", "triton_interpreter_prologue2d.py", "triton_interpreter_modulated_conv2d.py"]
)
def test_interpreted(tmp_path, name):
    report = tmp_path / "report.xml"
    tests = str(Path(__file__).with_name(name))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", tests],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    assert int(suite.get("tests")) > 100 and int(suite.get("skipped")) == 0
