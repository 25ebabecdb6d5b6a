"""The list of faults fits today's sources; ``python tests/mutations.py`` shows that the tests notice each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import mutations

ENTRIES = mutations.read()


def test_every_entry_fits_the_sources():
    """A fault whose line has changed must follow it, or nobody would know that its tests still notice it."""
    assert ENTRIES
    assert {entry.name: entry.defects for entry in ENTRIES if entry.defects} == {}


def test_every_entry_has_a_name_of_its_own():
    assert [name for name, count in Counter(entry.name for entry in ENTRIES).items() if count > 1] == []


def test_entries_that_do_not_fit_are_told():
    entry = ENTRIES[0]
    assert replace(entry, old="\n", new="").defects[0].endswith(f"times in {entry.file}, expected once")
    assert replace(entry, file="no.py").defects == ["old occurs 0 times in no.py, expected once"]
    assert replace(entry, new=entry.old).defects == ["old and new are the same"]
    assert replace(entry, tests="tests/no.py -k 'some or other'").defects == ["there is no tests/no.py"]
    assert replace(entry, tests="-k some").defects == ["tests names no file"]
    assert replace(entry, rebuild=("bias_act", "no")).defects == ["there is no csrc/no.cpp"]
