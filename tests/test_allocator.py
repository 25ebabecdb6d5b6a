"""The allocator's setting: its effect on a process, and what it says where there is none to make."""

from __future__ import annotations

import ctypes
import sys
import types

import pytest
from foreign import python

import posgan_fast

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is the C library of Linux")


@on_linux
def test_freed_memory_stays_in_the_process():
    """Tensors of 64 MiB, made and freed: kept memory serves some of them without a page fault, fresh mappings none."""
    code = """
import resource, torch, posgan_fast

def faults():
    counts = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(1 << 24).fill_(1)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)

untuned = faults()
print(untuned, posgan_fast.tune_allocator(), faults())
"""
    done = python("-c", code)
    untuned, answer, tuned = done.stdout.split()
    assert answer == "True" and int(untuned) >= 32 and int(tuned) < 8, done.stdout + done.stderr


@pytest.fixture
def library(monkeypatch):
    """The C library, replaced: sets what its ``mallopt`` answers to an option, and keeps what it was asked."""

    def setting(answer):
        asked = {}

        def mallopt(option, value):
            asked[option] = value
            return answer(option)

        functions = {} if answer is None else {"mallopt": mallopt}
        monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace(**functions))
        return asked

    monkeypatch.setattr(sys, "platform", "linux")
    return setting


def test_the_setting_is_the_one_of_the_environment_variables(library):
    asked = library(lambda option: 1)
    assert posgan_fast.tune_allocator() is True
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # glibc's malloc.h
    assert asked == {mmap_max: 0, trim_threshold: -1, top_pad: 268435456}


@pytest.mark.parametrize("refused", [-1, -2, -4])
def test_a_refused_option_is_told(refused, library):
    asked = library(lambda option: int(option != refused))
    assert posgan_fast.tune_allocator() is False
    assert set(asked) == {-1, -2, -4}  # the others are set all the same


def test_a_library_without_mallopt(library):
    library(None)
    assert posgan_fast.tune_allocator() is False


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_platforms(platform, library, monkeypatch):
    asked = library(lambda option: 1)
    monkeypatch.setattr(sys, "platform", platform)
    assert posgan_fast.tune_allocator() is False and not asked
