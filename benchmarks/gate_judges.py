"""Judges of the GPU gate: each turns the exit code and output of a step into a status and a record."""

from __future__ import annotations

import json
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import ROOT

PASSED, FAILED, SKIPPED, CUT = "passed", "failed", "skipped", "cut"

Judgement = tuple[str, dict[str, Any]]


def build(code: int, folder: Path, library: str) -> Judgement:
    """Tell whether a library was built, and keep the record of its build."""
    status, record = file(code, folder / "posgan_fast" / "lib" / "build.json")
    entry = record.get(library, record)
    return (PASSED if status == PASSED and entry.get("built") else FAILED), entry


def collection(code: int, output: str) -> Judgement:
    """Count the tests that pytest collected."""
    collected = sum("::" in line for line in output.splitlines())
    return (PASSED if code == 0 and collected else FAILED), {"collected": collected, "reason": f"{collected} collected"}


def junit(code: int, reports: Sequence[Path]) -> Judgement:
    """Count the tests of all reports, and keep the name and message of each that did not pass."""
    cases: list[ElementTree.Element] = []
    absent = 0
    for report in reports:
        try:
            cases += ElementTree.parse(report).getroot().iter("testcase")
        except (OSError, ElementTree.ParseError):
            absent += 1
    result: dict[str, Any] = {"passed": 0, "failed": [], "skipped": []}
    for case in cases:
        bad = [child for child in case if child.tag in ("failure", "error")]
        gone = [child for child in case if child.tag == "skipped"]
        name = f"{case.get('classname')}::{case.get('name')}"
        if bad or gone:
            text = (bad or gone)[0].get("message") or ""
            result["failed" if bad else "skipped"].append({"test": name, "message": shown(text.strip()[:300])})
        else:
            result["passed"] += 1
    counts = f"{result['passed']} passed, {len(result['failed'])} failed, {len(result['skipped'])} skipped"
    if absent:
        counts += f", {absent} of {len(reports)} test runs without a report, exit code {code}"
    good = code == 0 and result["passed"] > 0 and not absent
    return (PASSED if good else FAILED), {**result, "reason": counts}


def sanitizer(code: int, output: str) -> Judgement:
    """Read compute-sanitizer's summary; a clean one counts only if the kernels did run."""
    lines = [line.strip("= \n") for line in output.splitlines() if line.startswith("=========")]
    verdict = next((line for line in reversed(lines) if "SUMMARY" in line), "")
    if "Device not supported" in output:
        return SKIPPED, {"reason": "compute-sanitizer does not support this device here", "findings": lines[:20]}
    clean = code == 0 and "exercised" in output and any(f" 0 {what}" in verdict for what in ("errors", "hazards"))
    return (PASSED if clean else FAILED), {"reason": verdict, "findings": [] if clean else lines[:60]}


def benchmarks(code: int, path: Path) -> Judgement:
    """Keep the results of the benchmarks, and count the comparisons that ours lost."""
    status, result = file(code, path)
    beaten, cut = len(result.get("slower", [])), len(result.get("cut", []))
    if status == PASSED:
        result["reason"] = f"{len(result['rows'])} cases, {beaten} comparisons lost, {cut} cut"
    return status, result


def networks(code: int, path: Path) -> Judgement:
    """Keep the rows of the networks, those of a run that was stopped too, and count them."""
    status, result = file(code, path)
    if "rows" in result:
        counts = {name: len(result[name]) for name in ("failed", "slower", "cut")}
        result["reason"] = (
            f"{len(result['rows'])} rows, {counts['failed']} failed, {counts['slower']} comparisons lost,"
            f" {counts['cut']} cut"
        )
    return status, result


def file(code: int, path: Path) -> Judgement:
    """Keep the result that a step wrote into a file."""
    try:
        return (PASSED if code == 0 else FAILED), json.loads(path.read_text())
    except (OSError, ValueError):
        return FAILED, {"reason": f"no result, exit code {code}"}


def shown(text: str) -> str:
    """The text without this machine's paths."""
    for path, short in ((sys.executable, "python"), (ROOT, "."), (tempfile.gettempdir(), "$TMP")):
        text = text.replace(str(path), short)
    return text
