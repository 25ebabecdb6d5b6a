"""Prepacked weights: the same results, whatever happens to the weights in between."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from tolerances import assert_close

from posgan_fast import nn
from posgan_fast.ops.common import onednn, weight_cache
from posgan_fast.ops.modulated_conv2d import cpu

LAYERS = {"plain": dict(), "enlarging": dict(up=2), "pixel": dict(kernel_size=1)}


def _layer(**kwargs) -> nn.StyleConv:
    torch.manual_seed(0)
    module = nn.StyleConv(32, 24, 5, 8 * kwargs.get("up", 1), **kwargs)
    torch.nn.init.constant_(module.noise_strength, 0.5)
    return module.eval()


def _inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 32, 8, 8, generator=generator), torch.randn(n, 5, generator=generator)


@pytest.fixture
def packing(monkeypatch):
    """How often a weight was packed."""
    return _counted(monkeypatch, "_packed")


def _counted(monkeypatch, name):
    count = []
    function = getattr(cpu, name)
    monkeypatch.setattr(cpu, name, lambda *arguments: count.append(arguments) or function(*arguments))
    return count


@torch.no_grad()
def _run(module: nn.StyleConv, n: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x, w = _inputs(n)
    return module(x.to(dtype), w)


@pytest.mark.parametrize("kwargs", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2])
def test_results_are_the_same(kwargs, dtype, n, monkeypatch):
    module = _layer(**kwargs)
    expected = _run(copy.deepcopy(module).double(), n, torch.float64)
    prepared = _counted(monkeypatch, "_prepared")  # to be kept or not
    assert nn.prepack(module) is module
    for _ in range(2):
        assert_close(_run(module, n, dtype), expected, "modulated_conv2d", dtype)
    small = n == 1 and kwargs.get("kernel_size") == 1  # than the features: not worth it
    assert len(prepared) == (2 if small else 1), "made once, used twice"


@pytest.mark.parametrize("kwargs", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_other_sizes(kwargs, dtype):
    """The layout was chosen for the first input; others, empty ones among them, may follow."""
    module = _layer(**kwargs).to(dtype)
    packed, exact = nn.prepack(copy.deepcopy(module)), copy.deepcopy(module).double()
    for n, h, w in ((2, 8, 8), (1, 3, 4), (0, 8, 8), (5, 17, 9)):
        x, latent = torch.randn(n, 32, h, w, dtype=dtype), torch.randn(n, 5, dtype=dtype)
        with torch.no_grad():
            y = packed(x, latent, noise_mode="none")
            expected = exact(x.double(), latent.double(), noise_mode="none")
        assert y.shape == expected.shape and y.dtype == dtype
        if n:
            row = "winograd3x3" if dtype == torch.float32 else "modulated_conv2d"  # with enough pixels
            assert_close(y, expected, row, dtype)


@pytest.mark.skipif(not onednn.usable(torch.float32, False), reason="this torch has no such operators")
@pytest.mark.parametrize("kwargs", [dict(), dict(up=2)], ids=["plain", "enlarging"])
def test_weights_are_kept_in_the_layout_of_onednn(kwargs):
    module = nn.prepack(_layer(**kwargs))
    _run(module)
    ((_, (squares, w, odd)),) = weight_cache._KEPT[module.weight].values()
    assert w.is_mkldnn and odd is None and squares.shape == (32, 24)


@pytest.mark.parametrize("broken", [AttributeError, NotImplementedError, RuntimeError, TypeError])
def test_layouts_of_onednn_are_a_gain_and_no_need(broken, monkeypatch):
    """Other releases of torch may lack them, or take other arguments."""

    def refuse(*arguments):
        raise broken

    layers = [_layer(**kwargs) for kwargs in LAYERS.values()] + [nn.ModulatedConv2d(32, 24, down=2)]
    module = torch.nn.ModuleList(layers).eval()
    x, w = _inputs(2)

    @torch.no_grad()
    def results():
        nn.prepack(module)
        return [layer(x, w) for layer in layers[:-1]] + [layers[-1](x, x[:, :, 0, 0])]

    with_it = results()
    onednn.usable.cache_clear()
    monkeypatch.setattr(onednn, "_reordered", refuse)
    torch.testing.assert_close(with_it, results())
    assert not any(onednn.usable(torch.float32, transposed) for transposed in (False, True))
    onednn.usable.cache_clear()


def test_padding_maps_use_them_too(packing):
    module, (x, w) = _layer(), _inputs(1)
    pad_map = torch.randn(1, 32, 12, 12)
    with torch.no_grad():
        expected = module(x, w, pad_map=pad_map)
        actual = nn.prepack(module)(x, w, pad_map=pad_map)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert packing


def _optimiser(kind, **arguments):
    def write(module):
        module.weight.grad = torch.ones_like(module.weight)
        kind([module.weight], lr=0.1, **arguments).step()

    return write


def _one_number(module):
    module.weight.data[3, 4, 1, 1] += 10


def _swap_two(module):
    """Sums stay as they are."""
    data = module.weight.data
    data[0, 0], data[5, 6] = data[5, 6].clone(), data[0, 0].clone()


def _average(module):
    for ours, theirs in zip(module.parameters(), _layer().parameters(), strict=True):
        ours.data.mul_(0.5).add_(theirs.data + 1, alpha=0.5)


def _unnoticed(module):
    with torch.autograd._unsafe_preserve_version_counter(module.weight), torch.no_grad():
        module.weight.mul_(-1)


def _under_no_grad(write):
    def written(module):
        with torch.no_grad():
            write(module.weight)

    return written


WRITES = {
    "init": lambda module: torch.nn.init.ones_(module.weight),
    "load_state_dict": lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}),
    "load_state_dict(assign)": lambda module: module.load_state_dict(
        {k: v + 1 for k, v in module.state_dict().items()}, assign=True
    ),
    "another tensor": lambda module: setattr(module.weight, "data", torch.ones_like(module.weight)),
    "another dtype": lambda module: setattr(module.weight, "data", 2 * module.weight.data.double().round()),
    "another parameter": lambda module: setattr(module, "weight", torch.nn.Parameter(module.weight + 1)),
    "SGD": _optimiser(torch.optim.SGD),
    "SGD, fused": _optimiser(torch.optim.SGD, fused=True),
    "Adam, foreach": _optimiser(torch.optim.Adam, foreach=True),
    "Adam, fused": _optimiser(torch.optim.Adam, fused=True),
    "add_": _under_no_grad(lambda weight: weight.add_(1)),
    "data.mul_": lambda module: module.weight.data.mul_(-1),
    "data.copy_": lambda module: module.weight.data.copy_(module.weight.data.flip(0)),
    "data.lerp_": lambda module: module.weight.data.lerp_(torch.ones(()), 0.5),
    "data[...]": _one_number,
    "data, two swapped": _swap_two,
    "detach().add_": lambda module: module.weight.detach().add_(1),
    "foreach": lambda module: torch._foreach_lerp_([module.weight.data], [torch.ones_like(module.weight)], 0.5),
    "numpy": lambda module: module.weight.detach().numpy().__imul__(-1),
    "exponential average": _average,
    "version counter kept": _unnoticed,
    "to": lambda module: module.to(torch.bfloat16),
    "half": lambda module: module.half(),
    "data, then to": lambda module: (module.weight.data.add_(1), module.double()),
    "data, then prepack": lambda module: (module.weight.data.add_(1), nn.prepack(module)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_written_weight_is_prepared_anew(write, dtype):
    module = nn.prepack(_layer())
    before = _run(module, dtype=dtype)
    write(module)
    after = _run(module, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(after, _run(copy.deepcopy(module), dtype=dtype), rtol=tolerance, atol=tolerance)
    if write not in (WRITES["to"], WRITES["half"]):
        assert not torch.allclose(after, before, rtol=5e-2, atol=5e-2)


def test_tensors_are_not_swapped_unnoticed():
    module = nn.prepack(_layer())
    _run(module)
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(module.weight, torch.nn.Parameter(module.weight + 1))


def test_weights_of_inference_mode(packing):
    with torch.inference_mode():
        module = nn.prepack(_layer())
        before = _run(module)
        module.weight.mul_(-1)
        after = _run(module)
        torch.testing.assert_close(after, _run(nn.prepack(module, False)), rtol=1e-5, atol=1e-5)
    assert len(packing) == 2 and not torch.allclose(after, before, rtol=1e-3, atol=1e-3)


def test_a_large_image_does_not_need_them(packing):
    module = nn.prepack(_layer())
    with torch.no_grad():
        module(torch.randn(1, 32, 24, 24), torch.randn(1, 5), noise_mode="none")
    assert not packing, "the features outnumber the weights"


def test_gradients_and_other_backends_pass_them_by(packing):
    module, (x, w) = nn.prepack(_layer()), _inputs(1)
    module(x, w).sum().backward()
    assert module.weight.grad is not None and not packing


def test_neither_copied_nor_pickled_nor_kept_alive():
    module = nn.prepack(_layer())
    before = set(module.state_dict())
    _run(module)
    gc.collect()  # those of other tests
    held = len(weight_cache._KEPT)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    assert len(weight_cache._KEPT) == held and set(module.state_dict()) == before
    assert all(torch.equal(_run(twin), _run(twins[0])) for twin in twins)
    del module
    gc.collect()
    assert len(weight_cache._KEPT) == held - 1


def test_they_can_be_forgotten(packing):
    module = nn.prepack(_layer())
    _run(nn.prepack(module, False))
    assert not packing


def test_swapped_parameters_are_refused_until_the_copies_are_forgotten():
    """The table of copies refers to weights weakly, and torch swaps no such tensors, as the docstring says."""
    module = nn.prepack(_layer())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with pytest.raises(RuntimeError, match="Couldn't swap StyleConv.weight"):
            module.double()
        assert nn.prepack(module, False).double().weight.dtype == torch.float64
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_refusals():
    with pytest.raises(TypeError, match="^module: expected a torch.nn.Module, got Tensor"):
        nn.prepack(torch.zeros(1))


CHANGES = {
    "signs of a channel": lambda w: w[:, 3].neg_(),
    "a column of signs": lambda w: w[:, 3, 0, 0].neg_(),
    "two signs": lambda w: w[4:6, 3, 0, 0].neg_(),
    "two filters exchange a value": lambda w: w[5:7, 3, 1, 1].copy_(w[5:7, 3, 1, 1].flip(0)),
    "one bit": lambda w: w[2, 2, 2, 2].copy_(torch.nextafter(w[2, 2, 2, 2], torch.tensor(9.0))),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_the_values_is_noticed(change, layout):
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=layout)
    weight_cache.keep(weight)
    made = []

    def ask():
        weight_cache.packed(weight, "any form", lambda: made.append(None) or True)
        return len(made)

    assert ask() == ask() == 1
    change(weight.data)
    assert ask() == ask() == 2
    weight_cache.forget(weight)
