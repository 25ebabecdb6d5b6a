"""Bad input: the exact exception, and the argument's name in front of the message."""

from __future__ import annotations

import re

import pytest
import torch

import posgan_fast
from posgan_fast import functional as PF

X = torch.zeros(1, 2, 4, 4)
F4 = torch.ones(4)
RING = torch.zeros(1, 2, 20)
NAN, INF = float("nan"), float("inf")

UPFIRDN2D = [
    # keyword arguments, exception, argument
    (dict(x=None), TypeError, "x"),
    (dict(x=[[1.0]]), TypeError, "x"),
    (dict(x=X.int()), TypeError, "x"),
    (dict(x=X.to(torch.complex64)), TypeError, "x"),
    (dict(x=X.to_sparse()), TypeError, "x"),
    (dict(x=X[0]), ValueError, "x"),
    (dict(x=X[None]), ValueError, "x"),
    (dict(x=X[:, :0]), ValueError, "x"),
    (dict(x=X[:, :, :0]), ValueError, "x"),
    (dict(x=X[:, :, :, :0]), ValueError, "x"),
    (dict(up=2**24), ValueError, "up"),
    (dict(down=[1, 2**32]), ValueError, "down[1]"),
    (dict(down=2**63), ValueError, "down"),
    (dict(padding=2**30), ValueError, "padding"),
    (dict(padding=[0, -(2**31)]), ValueError, "padding[1]"),
    (dict(f=[1, 3, 3, 1]), TypeError, "f"),
    (dict(f=F4.int()), TypeError, "f"),
    (dict(f=torch.ones(())), ValueError, "f"),
    (dict(f=torch.ones(1, 1, 1)), ValueError, "f"),
    (dict(f=torch.ones(0)), ValueError, "f"),
    (dict(f=torch.ones(4, 0)), ValueError, "f"),
    (dict(f=F4.to("meta")), ValueError, "f"),
    (dict(f=F4.clone().requires_grad_()), ValueError, "f"),
    (dict(up=0), ValueError, "up"),
    (dict(up=-1), ValueError, "up"),
    (dict(up=2.0), TypeError, "up"),
    (dict(up=True), TypeError, "up"),
    (dict(up="2"), TypeError, "up"),
    (dict(up=[2]), ValueError, "up"),
    (dict(up=[1, 2, 3]), ValueError, "up"),
    (dict(up=[1, 0]), ValueError, "up[1]"),
    (dict(up=None), TypeError, "up"),
    (dict(down=0), ValueError, "down"),
    (dict(down=[1.5, 1]), TypeError, "down[0]"),
    (dict(down=torch.tensor(2)), TypeError, "down"),
    (dict(padding=1.5), TypeError, "padding"),
    (dict(padding=[1, 2, 3]), ValueError, "padding"),
    (dict(padding=[1, 2, 3, 4, 5]), ValueError, "padding"),
    (dict(padding=[1, 2, 3, "4"]), TypeError, "padding[3]"),
    (dict(padding=None), TypeError, "padding"),
    (dict(padding=-3), ValueError, "padding"),
    (dict(f=torch.ones(9)), ValueError, "padding"),
    (dict(flip_filter=1), TypeError, "flip_filter"),
    (dict(gain="1"), TypeError, "gain"),
    (dict(gain=NAN), ValueError, "gain"),
    (dict(gain=INF), ValueError, "gain"),
    (dict(gain=None), TypeError, "gain"),
    (dict(backend="gpu"), ValueError, "backend"),
    (dict(backend=1), TypeError, "backend"),
]
BIAS_ACT = [
    (dict(x=None), TypeError, "x"),
    (dict(x=3.0), TypeError, "x"),
    (dict(x=X.long()), TypeError, "x"),
    (dict(b=2.0), TypeError, "b"),
    (dict(b=torch.zeros(2, 1)), ValueError, "b"),
    (dict(b=torch.zeros(3)), ValueError, "b"),
    (dict(b=torch.zeros(2).double()), TypeError, "b"),
    (dict(b=torch.zeros(2).int()), TypeError, "b"),
    (dict(b=torch.zeros(2, device="meta")), ValueError, "b"),
    (dict(dim=4), ValueError, "dim"),
    (dict(dim=-5), ValueError, "dim"),
    (dict(dim=1.0), TypeError, "dim"),
    (dict(x=torch.zeros(()), b=torch.zeros(1), dim=0), ValueError, "dim"),
    (dict(act="gelu"), ValueError, "act"),
    (dict(act=None), TypeError, "act"),
    (dict(act=len), TypeError, "act"),
    (dict(alpha="0.2"), TypeError, "alpha"),
    (dict(alpha=NAN), ValueError, "alpha"),
    (dict(gain=INF), ValueError, "gain"),
    (dict(gain=[1]), TypeError, "gain"),
    (dict(clamp=-1), ValueError, "clamp"),
    (dict(clamp=NAN), ValueError, "clamp"),
    (dict(clamp=True), TypeError, "clamp"),
    (dict(backend="numpy"), ValueError, "backend"),
]
EPILOGUE2D = [
    (dict(x=None), TypeError, "x"),
    (dict(x=X[0]), ValueError, "x"),
    (dict(x=X.int()), TypeError, "x"),
    (dict(f=F4.int()), TypeError, "f"),
    (dict(f=F4.clone().requires_grad_()), ValueError, "f"),
    (dict(f=torch.ones(9)), ValueError, "padding"),
    (dict(up=2), ValueError, "f"),
    (dict(down=[1, 2]), ValueError, "f"),
    (dict(padding=1), ValueError, "f"),
    (dict(flip_filter=True), ValueError, "f"),
    (dict(filter_gain=4), ValueError, "f"),
    (dict(up=0), ValueError, "up"),
    (dict(flip_filter=1), TypeError, "flip_filter"),
    (dict(filter_gain=NAN), ValueError, "filter_gain"),
    (dict(f=F4, padding=2, filter_gain=NAN), ValueError, "filter_gain"),
    (dict(f=F4, padding=2, filter_gain="4"), TypeError, "filter_gain"),
    (dict(scale=1.0), TypeError, "scale"),
    (dict(scale=torch.ones(2)), ValueError, "scale"),
    (dict(scale=torch.ones(1, 2).int()), TypeError, "scale"),
    (dict(scale=torch.ones(1, 2, device="meta")), ValueError, "scale"),
    (dict(noise=0), TypeError, "noise"),
    (dict(noise=torch.zeros(4, 4)), ValueError, "noise"),
    (dict(noise=torch.zeros(1, 2, 4, 4)), ValueError, "noise"),
    (dict(noise=torch.zeros(1, 1, 4, 4), f=F4, padding=3), ValueError, "noise"),
    (dict(noise=torch.zeros(2, 1, 4, 4)), ValueError, "noise"),
    (dict(noise=torch.zeros(1, 1, 4, 4, device="meta")), ValueError, "noise"),
    (dict(b=[0.0, 0.0]), TypeError, "b"),
    (dict(b=torch.zeros(3)), ValueError, "b"),
    (dict(b=torch.zeros(2, device="meta")), ValueError, "b"),
    (dict(act="gelu"), ValueError, "act"),
    (dict(alpha="0.2"), TypeError, "alpha"),
    (dict(gain=INF), ValueError, "gain"),
    (dict(clamp=-1), ValueError, "clamp"),
    (dict(backend="numpy"), ValueError, "backend"),
]
WEIGHT, STYLES = torch.ones(3, 2, 3, 3), torch.ones(1, 2)
MODULATED_CONV2D = [
    (dict(x=None), TypeError, "x"),
    (dict(x=X[0]), ValueError, "x"),
    (dict(x=X.int()), TypeError, "x"),
    (dict(weight=[1.0]), TypeError, "weight"),
    (dict(weight=WEIGHT[None]), ValueError, "weight"),
    (dict(weight=WEIGHT[:, :1]), ValueError, "weight"),
    (dict(weight=WEIGHT[:0]), ValueError, "weight"),
    (dict(weight=WEIGHT.to("meta")), ValueError, "weight"),
    (dict(weight=WEIGHT.int()), TypeError, "weight"),
    (dict(styles=None), TypeError, "styles"),
    (dict(styles=STYLES[0]), ValueError, "styles"),
    (dict(styles=torch.ones(2, 2)), ValueError, "styles"),
    (dict(styles=STYLES.to("meta")), ValueError, "styles"),
    (dict(up=0), ValueError, "up"),
    (dict(up=[2, 2]), TypeError, "up"),
    (dict(down=1.0), TypeError, "down"),
    (dict(up=2, down=2), ValueError, "down"),
    (dict(padding=-1), ValueError, "padding"),
    (dict(padding=2**30 - 1), ValueError, "padding"),
    (dict(padding=[1, 1]), TypeError, "padding"),
    (dict(weight=torch.ones(3, 2, 7, 7)), ValueError, "padding"),
    (dict(pad_map=torch.ones(1, 2, 6, 6), padding=0), ValueError, "pad_map"),
    (dict(pad_map=torch.ones(1, 2, 6, 6), down=2), ValueError, "pad_map"),
    (dict(pad_map=torch.ones(1, 2, 11, 11), up=2, weight=torch.ones(3, 2, 1, 1)), ValueError, "pad_map"),
    (dict(pad_map=torch.ones(1, 2, 5, 6)), ValueError, "pad_map"),
    (dict(pad_map=torch.ones(1, 3, 6, 6)), ValueError, "pad_map"),
    (dict(pad_map=torch.ones(1, 2, 19)), ValueError, "pad_map"),
    (dict(pad_map=torch.ones(1, 2, 11, 11), up=2), ValueError, "pad_map"),
    (dict(pad_map=1.0), TypeError, "pad_map"),
    (dict(resample_filter=[1, 3, 3, 1]), TypeError, "resample_filter"),
    (dict(resample_filter=torch.ones(1, 1, 1), up=2), ValueError, "resample_filter"),
    (dict(resample_filter=F4.clone().requires_grad_(), up=2), ValueError, "resample_filter"),
    (dict(demodulate=1), TypeError, "demodulate"),
    (dict(flip_weight=None), TypeError, "flip_weight"),
    (dict(noise=1.0), TypeError, "noise"),
    (dict(noise=torch.ones(5, 4)), ValueError, "noise"),
    (dict(noise=torch.ones(1, 3, 4, 4)), ValueError, "noise"),
    (dict(noise=torch.ones(4, 4), up=2), ValueError, "noise"),
    (dict(bias=torch.ones(2)), ValueError, "bias"),
    (dict(bias=torch.ones(3).to("meta")), ValueError, "bias"),
    (dict(act="gelu"), ValueError, "act"),
    (dict(act=None), TypeError, "act"),
    (dict(gain=INF), ValueError, "gain"),
    (dict(clamp=-1), ValueError, "clamp"),
    (dict(eps=-1e-8), ValueError, "eps"),
    (dict(eps="0"), TypeError, "eps"),
    (dict(backend="gpu"), ValueError, "backend"),
]
SETUP_FILTER = [
    (dict(f=[float("nan"), 1.0]), ValueError, "f"),
    (dict(normalize="no"), TypeError, "normalize"),
    (dict(flip_filter=1), TypeError, "flip_filter"),
    (dict(separable="x"), TypeError, "separable"),
    (dict(f="1331"), TypeError, "f"),
    (dict(f=[]), ValueError, "f"),
    (dict(f=torch.zeros(2, 2, 2)), ValueError, "f"),
    (dict(f=[1, -1]), ValueError, "f"),
    (dict(f=torch.ones(2, 2), separable=True), ValueError, "separable"),
    (dict(gain=NAN), ValueError, "gain"),
    (dict(gain=-1, separable=True), ValueError, "gain"),
]

PROLOGUE2D = [
    (dict(x=None), TypeError, "x"),
    (dict(x=X.int()), TypeError, "x"),
    (dict(x=X.to_sparse()), TypeError, "x"),
    (dict(x=X[0]), ValueError, "x"),
    (dict(x=X[:, :, :0]), ValueError, "x"),
    (dict(x=X[:, :, :, :0]), ValueError, "x"),
    (dict(styles=1.0), TypeError, "styles"),
    (dict(styles=torch.ones(1, 2).int()), TypeError, "styles"),
    (dict(styles=torch.ones(2)), ValueError, "styles"),
    (dict(styles=torch.ones(1, 3)), ValueError, "styles"),
    (dict(styles=torch.ones(2, 2)), ValueError, "styles"),
    (dict(styles=torch.ones(1, 2), encode="csg", join="concat"), ValueError, "styles"),
    (dict(styles=torch.ones(1, 2, device="meta")), ValueError, "styles"),
    (dict(residual=[1]), TypeError, "residual"),
    (dict(residual=X[:, :1]), ValueError, "residual"),
    (dict(residual=X, encode="csg", join="concat"), ValueError, "residual"),
    (dict(residual=X.to("meta")), ValueError, "residual"),
    (dict(padding=1.0), TypeError, "padding"),
    (dict(padding=-1), ValueError, "padding"),
    (dict(padding=[1, 1, -1, 1]), ValueError, "padding"),
    (dict(padding=[1, 2, 3]), ValueError, "padding"),
    (dict(padding=[1, "1"]), TypeError, "padding[1]"),
    (dict(padding=4, mode="reflect"), ValueError, "padding"),
    (dict(padding=[0, 0, 0, 4], mode="reflect"), ValueError, "padding"),
    (dict(padding=0, mode="instance", pad_map=RING), ValueError, "padding"),
    (dict(padding=[1, 2], mode="instance", pad_map=RING), ValueError, "padding"),
    (dict(mode="replicate"), ValueError, "mode"),
    (dict(mode=None), TypeError, "mode"),
    (dict(padding=1, mode="instance"), ValueError, "pad_map"),
    (dict(padding=1, pad_map=RING), ValueError, "pad_map"),
    (dict(encode="sin"), ValueError, "encode"),
    (dict(encode=1), TypeError, "encode"),
    (dict(encode="csg", join="mul"), ValueError, "join"),
    (dict(join=None), TypeError, "join"),
    (dict(x=X[:, :1], encode="csg"), ValueError, "x"),
    (dict(encode="spe"), ValueError, "x"),
    (dict(encode="spe", join="concat"), ValueError, "channels"),
    (dict(encode="spe", join="concat", channels=6), ValueError, "channels"),
    (dict(encode="spe", join="concat", channels=0), ValueError, "channels"),
    (dict(encode="spe", join="concat", channels=8.0), TypeError, "channels"),
    (dict(encode="csg", channels=8), ValueError, "channels"),
    (dict(encode="csg", join="concat", channels=8), ValueError, "channels"),
    (dict(x=X.expand(2, 2, 4, 4).reshape(1, 4, 4, 4), encode="spe", channels=8), ValueError, "channels"),
    (dict(channels=8), ValueError, "encode"),
    (dict(base_size=[4, 4]), ValueError, "encode"),
    (dict(encode="csg", layout="stylegan"), ValueError, "layout"),
    (dict(encode="csg", layout=None), TypeError, "layout"),
    (dict(encode="csg", div_half_dim=1), TypeError, "div_half_dim"),
    (dict(encode="csg", base_size=4), TypeError, "base_size"),
    (dict(encode="csg", base_size=[4]), ValueError, "base_size"),
    (dict(encode="csg", base_size=[0, 4]), ValueError, "base_size[0]"),
    (dict(encode="csg", base_size=[4, 4.5]), TypeError, "base_size[1]"),
    (dict(backend="gpu"), ValueError, "backend"),
]
INSTANCE_PAD2D = [
    (dict(x=X[0]), ValueError, "x"),
    (dict(pad_map=None), ValueError, "pad_map"),
    (dict(pad_map=3.0), TypeError, "pad_map"),
    (dict(pad_map=RING.int()), TypeError, "pad_map"),
    (dict(pad_map=RING[0]), ValueError, "pad_map"),
    (dict(pad_map=RING[:, :1]), ValueError, "pad_map"),
    (dict(pad_map=RING.expand(2, -1, -1)), ValueError, "pad_map"),
    (dict(pad_map=RING[:, :, 1:]), ValueError, "pad_map"),
    (dict(pad_map=torch.zeros(1, 2, 5, 6)), ValueError, "pad_map"),
    (dict(pad_map=torch.zeros(1, 2, 6, 5)), ValueError, "pad_map"),
    (dict(pad_map=RING.to("meta")), ValueError, "pad_map"),
    (dict(backend=1), TypeError, "backend"),
]
RING_FROM_MAP = [
    (dict(pad_map=None), TypeError, "pad_map"),
    (dict(pad_map=X[0]), ValueError, "pad_map"),
    (dict(pad_map=X[:, :, :2]), ValueError, "pad_map"),
    (dict(height=3), ValueError, "pad_map"),
    (dict(width=3), ValueError, "pad_map"),
    (dict(height=0), ValueError, "height"),
    (dict(width=2.0), TypeError, "width"),
]
MAP_FROM_RING = [
    (dict(ring=None), TypeError, "ring"),
    (dict(ring=RING[0]), ValueError, "ring"),
    (dict(ring=RING[:, :, 1:]), ValueError, "ring"),
    (dict(height=5), ValueError, "ring"),
    (dict(height=0), ValueError, "height"),
    (dict(width=None), TypeError, "width"),
]
CARTESIAN_GRID2D = [
    (dict(height=0), ValueError, "height"),
    (dict(height=2.0), TypeError, "height"),
    (dict(width=-1), ValueError, "width"),
    (dict(width="4"), TypeError, "width"),
    (dict(layout="mm"), ValueError, "layout"),
    (dict(base_size="44"), TypeError, "base_size"),
    (dict(base_size=[4, 4, 4]), ValueError, "base_size"),
    (dict(dtype=torch.int32), TypeError, "dtype"),
    (dict(dtype="float32"), TypeError, "dtype"),
    (dict(backend="numpy"), ValueError, "backend"),
]
SINUSOIDAL_ENCODING2D = [
    *CARTESIAN_GRID2D,
    (dict(channels=6), ValueError, "channels"),
    (dict(channels=4), ValueError, "channels"),
    (dict(channels=0), ValueError, "channels"),
    (dict(channels=None), TypeError, "channels"),
    (dict(div_half_dim=None), TypeError, "div_half_dim"),
]


# The resampling helpers add the padding their filter needs, so only their shared arguments can be wrong.
RESAMPLING = [row for row in UPFIRDN2D if not {"up", "down"} & set(row[0]) and row[1:] != (ValueError, "padding")]
# Arguments that are right, and the changes to them that are refused.
CALLS = {
    "upfirdn2d": (dict(x=X, f=F4, padding=2), UPFIRDN2D),
    **dict.fromkeys(("filter2d", "upsample2d", "downsample2d"), (dict(x=X, f=F4), RESAMPLING)),
    **dict.fromkeys(("bias_act", "bias_act_"), (dict(x=X, b=torch.zeros(2)), BIAS_ACT)),
    "epilogue2d": (dict(x=X), EPILOGUE2D),
    "modulated_conv2d": (dict(x=X, weight=WEIGHT, styles=STYLES, padding=1), MODULATED_CONV2D),
    "setup_filter": (dict(f=[1, 3, 3, 1]), SETUP_FILTER),
    "prologue2d": (dict(x=X, padding=1), PROLOGUE2D),
    "instance_pad2d": (dict(x=X, pad_map=RING), INSTANCE_PAD2D),
    "ring_from_map": (dict(pad_map=X), RING_FROM_MAP),
    "map_from_ring": (dict(ring=RING, height=4, width=4), MAP_FROM_RING),
    "cartesian_grid2d": (dict(height=4, width=5), CARTESIAN_GRID2D),
    "sinusoidal_encoding2d": (dict(height=4, width=5, channels=8), SINUSOIDAL_ENCODING2D),
}
ROWS = [(name, *row) for name, (_, rows) in CALLS.items() for row in rows]


def _identify(value):
    return repr(value)[:60] if isinstance(value, dict) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize("name, change, error, argument", ROWS, ids=_identify)
def test_a_wrong_argument_is_named(name, change, error, argument):
    right, _ = CALLS[name]
    with pytest.raises(error, match=f"(?s)^{re.escape(argument)}: .*expected") as caught:
        getattr(PF, name)(**right | change)
    assert type(caught.value) is error


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_that_are_changed_are_right(name):
    right, rows = CALLS[name]
    getattr(PF, name)(**{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in right.items()})
    assert len(rows) >= 6


@pytest.mark.parametrize("name", ["filter2d", "upsample2d", "downsample2d"])
def test_resampling_takes_no_padding_that_leaves_nothing(name):
    with pytest.raises(ValueError, match="^padding: "):
        getattr(PF, name)(X, F4, padding=-9)


def test_other_entrances():
    with pytest.raises(ValueError, match="^name:"), posgan_fast.use_backend("gpu"):
        pass
    with pytest.raises(TypeError, match="^name:"), posgan_fast.use_backend(3):
        pass
    with pytest.raises(ValueError, match="^target:"):
        posgan_fast.explain("conv3d", X)
    with pytest.raises(TypeError, match="missing a required argument: 'f'"):
        posgan_fast.explain("upfirdn2d", X)


def test_the_tables_are_not_thinned():
    assert len(UPFIRDN2D) + len(BIAS_ACT) + len(SETUP_FILTER) >= 70
    assert len(MODULATED_CONV2D) >= 40
    assert len(PROLOGUE2D) + len(INSTANCE_PAD2D) + len(SINUSOIDAL_ENCODING2D) >= 70
