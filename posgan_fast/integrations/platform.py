"""Workarounds for incompatible changes of the platform, in force under ``posgan-fast run``.

Newer versions of torch, torchvision, Pillow, numpy and scikit-image removed names and arguments that the families'
programs still use. :data:`BREAKS` lists all that have a workaround, and so does docs/running-scripts.md. A workaround
is applied when its module is imported, and only if the installed version needs it.
"""

from __future__ import annotations

import argparse
import collections
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from . import report as hooks_report
from .changes import Changes
from .engine import Engine, Replacement, Target
from .reports import Report


class Break(NamedTuple):
    """One incompatible change, as docs/running-scripts.md shows it, and its workaround.

    Attributes:
        what: the name or argument that programs use.
        since: the version since which that fails.
        answer: what the program gets instead.
        used_by: programs that use it.
        module: the module that changed.
        apply: ``apply(changes, module, report_use)`` applies the workaround, which calls ``report_use`` when a program
            uses it; None if the module itself is missing, which ``standins.STANDINS`` makes.
    """

    what: str
    since: str
    answer: str
    used_by: str
    module: str
    apply: Callable[[Changes, Any, Callable[[], None]], None] | None = None


def stand_in(changes: Changes) -> None:
    """Apply the workarounds of :data:`BREAKS`, in the modules imported already and in those imported later."""

    def work_around(module: ModuleType, _: Report) -> Mapping[str, Replacement]:
        for row in BREAKS:
            if row.apply is not None and row.module == module.__name__:
                row.apply(changes, module, functools.partial(_add_to_report, row.what))
        return {}

    modules = dict.fromkeys(row.module for row in BREAKS if row.apply is not None)
    targets = [Target("platform", module, {}, work_around) for module in modules]
    engine = Engine({"platform": targets}, {})
    engine.patch(["platform"])
    changes.on_undo(engine.unpatch)


def table() -> str:
    """Format :data:`BREAKS` as a table in Markdown, for docs/running-scripts.md.

    Example:
        >>> table().splitlines()[0]
        '| what programs use | fails since | answer | used by |'
    """
    rows = [("what programs use", "fails since", "answer", "used by"), ("---",) * 4]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (*rows, *(row[:4] for row in BREAKS)))


def _add_to_report(what: str) -> None:
    """Add a break whose workaround a program uses to the report of the hooks, once."""
    names, name = hooks_report().standins, what.replace("`", "")
    if name not in names:
        names.append(name)


def _sampler(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
    if "__init__" in vars(module.Sampler):
        return

    def __init__(self: Any, data_source: Any = None) -> None:
        if data_source is not None:
            report_use()

    changes.put(module.Sampler, "__init__", __init__)


def _adam(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
    theirs = module.Adam.__init__

    @functools.wraps(theirs)
    def __init__(self: Any, params: Any, lr: Any = 1e-3, betas: Any = (0.9, 0.999), *args: Any, **kwargs: Any) -> None:
        if {type(beta) for beta in betas} == {int, float}:
            report_use()
            betas = tuple(map(float, betas))
        theirs(self, params, lr, betas, *args, **kwargs)

    changes.put(module.Adam, "__init__", __init__)


def _inert_types(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
    """Allow types in weights-only loads whose loading runs no code; such loads go on refusing all others."""
    _allow(changes, module, argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, *_numpy_data())


def _easydict(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
    """Load EasyDict as OrderedDict: a weights-only load fills no other class of dictionary, even if it is allowed."""
    _allow(changes, module, (collections.OrderedDict, "easydict.EasyDict"))


def _allow(changes: Changes, serialization: Any, *types: Any) -> None:
    earlier = serialization.get_safe_globals()
    fresh = [entry for entry in types if entry not in earlier]
    serialization.add_safe_globals(fresh)

    def undo() -> None:
        kept = [entry for entry in serialization.get_safe_globals() if entry not in fresh]
        serialization.clear_safe_globals()
        serialization.add_safe_globals(kept)

    changes.on_undo(undo)


def _numpy_data() -> Iterator[Any]:
    """The types behind pickled arrays, scalars and dtypes, under the module names of numpy 1 and of numpy 2."""
    try:
        import numpy
    except ImportError:
        return
    yield from (numpy.ndarray, numpy.dtype)
    yield from {type(numpy.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSUV"}
    for value in (numpy.float64(0), numpy.zeros(0)):
        function: Any = value.__reduce__()[0]
        yield from (
            (function, f"{package}.multiarray.{function.__name__}") for package in ("numpy.core", "numpy._core")
        )


def _value_range(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
    theirs = module.make_grid  # save_image passes its arguments on to it

    @functools.wraps(theirs)
    def make_grid(*args: Any, **kwargs: Any) -> Any:
        if "range" in kwargs:
            report_use()
            kwargs["value_range"] = kwargs.pop("range")
        return theirs(*args, **kwargs)

    changes.put(module, "make_grid", make_grid)


def _names(**names: Callable[[Any], Any]) -> Callable[[Changes, Any, Callable[[], None]], None]:
    """Make an ``apply`` that restores names which the module lost, each found by a function of that module."""

    def apply(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
        for name, find in names.items():
            if name not in vars(module):
                changes.put(module, name, find(module))

    return apply


def _compare_ssim(changes: Changes, module: Any, report_use: Callable[[], None]) -> None:
    if "compare_ssim" in vars(module):
        return

    def compare_ssim(*args: Any, multichannel: bool = False, **kwargs: Any) -> Any:
        from skimage.metrics import structural_similarity

        report_use()
        return structural_similarity(*args, channel_axis=-1 if multichannel else None, **kwargs)

    changes.put(module, "compare_ssim", compare_ssim)


BREAKS = (
    Break(
        "`torch.utils.data.Sampler.__init__(data_source)`",
        "torch 2.10",
        "the argument is taken and not used, as before",
        "`InfiniteSampler` of NVlabs' training loops and of PadInv",
        "torch.utils.data.sampler",
        _sampler,
    ),
    Break(
        "`torch.optim.Adam(betas=(0, 0.99))`",
        "torch 2.6",
        "the int beside a float becomes one",
        "NVlabs stylegan3 without lazy regularisation (`--cfg stylegan3-t`)",
        "torch.optim.adam",
        _adam,
    ),
    Break(
        "`torch.load` of a checkpoint with `argparse.Namespace`, `pathlib` paths, numpy arrays, scalars or dtypes",
        "torch 2.6, where `weights_only=True` became the default",
        "these types are allowed, since loading them runs nothing; all others are refused as before",
        "rosinality's `train.py`, `generate.py`, `projector.py`, `fid.py`, `ppl.py`",
        "torch.serialization",
        _inert_types,
    ),
    Break(
        "`torch.load` of a checkpoint with `easydict.EasyDict`",
        "torch 2.6",
        "read as an `OrderedDict` with the same items and attributes",
        "PadInv's runners",
        "torch.serialization",
        _easydict,
    ),
    Break(
        "`torchvision.utils.save_image(range=)`, `make_grid(range=)`",
        "torchvision 0.16",
        "passed on as `value_range`",
        "rosinality's `train.py` and `generate.py`, basicsr's `inference_stylegan2.py`",
        "torchvision.utils",
        _value_range,
    ),
    Break(
        "`torchvision.models.utils`",
        "torchvision 0.11",
        "a module with `load_state_dict_from_url` of `torch.hub`",
        "genforce's `metrics/inception.py`",
        "torchvision.models.utils",
    ),
    Break(
        "`torchvision.transforms.functional_tensor`",
        "torchvision 0.17",
        "a module with the functions of `torchvision.transforms.functional`",
        "basicsr 1.4.2, which GFPGAN imports",
        "torchvision.transforms.functional_tensor",
    ),
    Break(
        "`PIL.Image.ANTIALIAS`",
        "Pillow 10",
        "`LANCZOS`, its other name",
        "pSp's `align_all_parallel.py`, genforce's `datasets/transforms.py`",
        "PIL.Image",
        _names(ANTIALIAS=lambda image: image.LANCZOS),
    ),
    Break(
        "`numpy.cumproduct`",
        "numpy 2.0",
        "`cumprod`, its other name",
        "mmgeneration's `base_diffusion.py`",
        "numpy",
        _names(cumproduct=lambda numpy: numpy.cumprod),
    ),
    Break(
        "`numpy.int`, `numpy.bool`, `numpy.float`, `numpy.complex`, `numpy.object`, `numpy.str`",
        "numpy 1.24",
        "Python's types, which these were",
        "SinGAN's `imresize.py`",
        "numpy",
        _names(**{t.__name__: lambda _, t=t: t for t in (int, bool, float, complex, object, str)}),
    ),
    Break(
        "`skimage.measure.compare_ssim`",
        "scikit-image 0.18",
        "`skimage.metrics.structural_similarity`",
        "rosinality's `lpips`",
        "skimage.measure",
        _compare_ssim,
    ),
    Break(
        "`pkg_resources`",
        "setuptools 82",
        "a module with `parse_version` and `get_distribution`",
        "gradfix modules of NVlabs and of their forks",
        "pkg_resources",
    ),
    Break(
        "`distutils`",
        "Python 3.12",
        "a package",
        "`dnnlib` of NVlabs",
        "distutils",
    ),
    Break("`distutils.util`", "Python 3.12", "a module with `strtobool`", "`dnnlib` of NVlabs", "distutils.util"),
)
