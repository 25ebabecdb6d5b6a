"""Every public class and function has an example in its docstring, and the examples run."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import posgan_fast
from posgan_fast import functional, models, nn


def _public(module: Any) -> dict[str, Any]:
    objects = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in objects.items() if inspect.isclass(value) or inspect.isroutine(value)}


PUBLIC = {"posgan_fast.graphed": posgan_fast.graphed} | {
    f"{module.__name__}.{name}": value
    for module in (functional, nn, models, models.mspie)
    for name, value in _public(module).items()
}


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name):
    value = PUBLIC[name]
    names = vars(sys.modules[value.__module__]) | _public(functional)
    (test,) = doctest.DocTestFinder(recurse=False).find(value, name, globs=names)
    assert test.examples, f"{name} has no example in its docstring"
    output: list[str] = []
    with torch.random.fork_rng(devices=[]):
        failed, _ = doctest.DocTestRunner().run(test, out=output.append)
    assert not failed, "".join(output)


def test_example_of_the_package_uses_every_name_and_runs():
    examples = doctest.DocTestParser().get_examples(posgan_fast.__doc__)
    used = set(re.findall(r"posgan_fast\.(\w+)", "".join(example.source for example in examples)))
    assert not _public(posgan_fast).keys() - used
    # In a process of its own, because tune_allocator and patch change the one that they run in.
    code = "import doctest, posgan_fast; raise SystemExit(doctest.testmod(posgan_fast).failed)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
