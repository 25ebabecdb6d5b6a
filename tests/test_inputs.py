"""Bad input: the exact exception, and the argument's name in front of the message."""

from __future__ import annotations

import pytest
import torch

import posgan_fast
from posgan_fast import functional as PF

X = torch.zeros(1, 2, 4, 4)
F4 = torch.ones(4)
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
    (dict(act=torch.relu), TypeError, "act"),
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
SETUP_FILTER = [
    (dict(f="1331"), TypeError, "f"),
    (dict(f=[]), ValueError, "f"),
    (dict(f=torch.zeros(2, 2, 2)), ValueError, "f"),
    (dict(f=[1, -1]), ValueError, "f"),
    (dict(f=torch.ones(2, 2), separable=True), ValueError, "separable"),
    (dict(gain=NAN), ValueError, "gain"),
    (dict(gain=-1, separable=True), ValueError, "gain"),
]


def _identify(value):
    return repr(value)[:60] if isinstance(value, dict) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize("change,error,argument", UPFIRDN2D, ids=_identify)
def test_upfirdn2d(change, error, argument):
    _raises(PF.upfirdn2d, dict(x=X, f=F4, padding=2) | change, error, argument)


# The resampling helpers add the padding their filter needs, so only their shared arguments can be wrong.
RESAMPLING = [row for row in UPFIRDN2D if not {"up", "down"} & set(row[0]) and row[1:] != (ValueError, "padding")]


@pytest.mark.parametrize("name", ["filter2d", "upsample2d", "downsample2d"])
@pytest.mark.parametrize("change,error,argument", RESAMPLING, ids=_identify)
def test_resampling(name, change, error, argument):
    _raises(getattr(PF, name), dict(x=X, f=F4) | change, error, argument)
    with pytest.raises(ValueError, match="^padding: "):
        getattr(PF, name)(X, F4, padding=-9)


@pytest.mark.parametrize("change,error,argument", BIAS_ACT, ids=_identify)
@pytest.mark.parametrize("function", [PF.bias_act, PF.bias_act_])
def test_bias_act(function, change, error, argument):
    _raises(function, dict(x=X.clone(), b=torch.zeros(2)) | change, error, argument)


@pytest.mark.parametrize("change,error,argument", EPILOGUE2D, ids=_identify)
def test_epilogue2d(change, error, argument):
    _raises(PF.epilogue2d, dict(x=X) | change, error, argument)


@pytest.mark.parametrize("change,error,argument", SETUP_FILTER, ids=_identify)
def test_setup_filter(change, error, argument):
    _raises(PF.setup_filter, dict(f=[1, 3, 3, 1]) | change, error, argument)


def test_other_entrances():
    with pytest.raises(ValueError, match="^name:"), posgan_fast.use_backend("gpu"):
        pass
    with pytest.raises(TypeError, match="^name:"), posgan_fast.use_backend(3):
        pass
    with pytest.raises(ValueError, match="^op_name:"):
        posgan_fast.explain("conv2d", X)
    with pytest.raises(TypeError, match="missing a required argument: 'f'"):
        posgan_fast.explain("upfirdn2d", X)


def test_the_tables_are_not_thinned():
    assert len(UPFIRDN2D) + len(BIAS_ACT) + len(SETUP_FILTER) >= 70


def _raises(function, arguments, error, argument):
    with pytest.raises(error) as caught:
        function(**arguments)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{argument}: "), str(caught.value)
    assert "expected" in str(caught.value)
