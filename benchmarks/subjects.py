"""The calls on which two source trees are compared: the cases of the ops, and StyleGAN2 layers and networks.

They use the public functions and modules alone, so that a tree with other internals runs them too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cases
import torch

from posgan_fast import functional as PF

from . import network_calls

NETWORKS = ("layer", "generator", "prepacked", "padding", "discriminator", "training")
SIZE, QUICK_SIZE = 256, 64  # pixels of the networks
QUICK_RESOLUTIONS = (16, 64)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# Relative L2 between two correct implementations; peers round intermediates to half precision, ours do not.
AGREE = {"float16": 1e-2, "bfloat16": 3e-2, "float32": 1e-5, "float64": 1e-12}
_AUTOCAST = ("float32", "bfloat16")  # dtypes of the networks


@dataclass(frozen=True)
class Subject:
    """One call: ``op`` is an op of ``cases.CASES`` or one of ``NETWORKS``. Networks choose their own layout: ""."""

    op: str
    case: str
    dtype: str
    layout: str
    batch: int

    def __str__(self) -> str:
        words = [f"{self.op} {self.case}", self.dtype, self.layout, f"N={self.batch}" if self.batch > 1 else ""]
        return ", ".join(word for word in words if word)


class Prepared(NamedTuple):
    """A call with its input. ``traffic`` is the bytes that it must move at least, 0 for a network, whose call
    synchronises with the device by itself."""

    call: Callable[[torch.Tensor], Any]
    x: torch.Tensor
    traffic: int


def plan(
    ops: Sequence[str], words: Sequence[str], dtypes: Sequence[str], layouts: Sequence[str], batch: int, quick: bool
) -> list[Subject]:
    """The calls of some ops, in some dtypes and layouts, whose name has one of the words (all if there are none)."""
    found = []
    for op in ops:
        for name, own_dtypes, own_layouts in _cases(op, quick):
            if not words or any(word in name for word in words):
                found += [
                    Subject(op, name, dtype, layout, network_calls.TRAINING_BATCH if op == "training" else batch)
                    for dtype in dtypes
                    if dtype in own_dtypes
                    for layout in (layouts if own_layouts else [""])
                ]
    return found


def prepare(subject: Subject, device: torch.device) -> Prepared:
    """Make the tensors and modules of a call; they are equal in every process."""
    torch.manual_seed(0)
    if subject.op in cases.CASES:
        return _op(subject, device)
    make: dict[str, Callable[[Subject, torch.device], Prepared]] = {
        "layer": _layer, "generator": _generator, "prepacked": partial(_generator, prepacked=True),
        "padding": partial(_generator, padded=True), "discriminator": _discriminator, "training": _training,
    }  # fmt: skip
    return make[subject.op](subject, device)


def _cases(op: str, quick: bool) -> Iterator[tuple[str, Sequence[str], bool]]:
    """The name of every case of an op, its dtypes, and whether it exists in several layouts."""
    if op in cases.CASES:
        for case in cases.CASES[op]:
            if not quick or case.resolution in QUICK_RESOLUTIONS:
                yield case.name, list(DTYPES), True
    elif op == "layer":
        for resolution in QUICK_RESOLUTIONS if quick else network_calls.LAYER_SIZES:
            for up in (1, 2):
                yield network_calls.layer_name(resolution, up), list(DTYPES), True
    elif op == "training":
        if not quick:
            yield f"{network_calls.TRAINING_SIZE}, R1 and path length", ["float32"], False
    else:
        yield str(QUICK_SIZE if quick else SIZE), ["float32"] if op == "discriminator" else _AUTOCAST, False


def _op(subject: Subject, device: torch.device) -> Prepared:
    case = next(case for case in cases.CASES[subject.op] if case.name == subject.case)
    case = cases.with_batch(case, subject.batch)
    x, extra = (t if t is None else t.to(device) for t in case.tensors(DTYPES[subject.dtype], LAYOUTS[subject.layout]))
    assert x is not None
    function, arguments = getattr(PF, subject.op), case.arguments
    traffic = cases.elements_moved(case) * x.element_size()
    return Prepared(lambda x: function(x, extra, **arguments), x, traffic)


def _layer(subject: Subject, device: torch.device) -> Prepared:
    sizes = [(r, up) for r in network_calls.LAYER_SIZES for up in (1, 2)]
    resolution, up = next(size for size in sizes if network_calls.layer_name(*size) == subject.case)
    arguments = network_calls.style_layer(resolution, up, subject.batch, device)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and name != "resample_filter":
            arguments[name] = value.to(DTYPES[subject.dtype])
    x = arguments.pop("x").contiguous(memory_format=LAYOUTS[subject.layout])
    return Prepared(lambda x: PF.modulated_conv2d(x, **arguments), x, 2 * x.numel() * x.element_size())


def _generator(subject: Subject, device: torch.device, prepacked: bool = False, padded: bool = False) -> Prepared:
    g = network_calls.generator(int(subject.case), device)
    ws = network_calls.latents(g, subject.batch, device)
    if prepacked:
        from posgan_fast.nn import prepack

        g = prepack(copy.deepcopy(g))
    options = {"pad_maps": network_calls.padding_maps(device)} if padded else {}
    return _network(lambda ws: network_calls.in_dtype(subject.dtype, lambda: g.synthesis(ws, **options)), ws)


def _discriminator(subject: Subject, device: torch.device) -> Prepared:
    size = int(subject.case)
    return _network(network_calls.discriminator(size, device), torch.randn(subject.batch, 3, size, size, device=device))


def _training(subject: Subject, device: torch.device) -> Prepared:
    g = network_calls.generator(network_calls.TRAINING_SIZE, device)
    d = network_calls.discriminator(network_calls.TRAINING_SIZE, device)
    z, real = network_calls.training_inputs(device)
    return _network(lambda z: network_calls.training_step(g, d, z, real), z)


def _network(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Prepared:
    def run(x: torch.Tensor) -> torch.Tensor:
        y = call(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return y

    return Prepared(run, x, 0)
