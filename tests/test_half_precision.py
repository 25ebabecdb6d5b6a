"""Networks whose highest resolutions run in half precision: dtypes, results, derivatives, loading, training.

Blocks in float16 run in float32 on the CPU. So dtypes are looked at on "meta", results are those of bfloat16 and of
layers, and ``test_gpu_networks.py`` has whole networks in float16.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from small_trainings import run
from stylegan2_states import discriminator as discriminator_state
from stylegan2_states import generator as generator_state
from test_models import discriminator, generator, latents, randn
from test_pickles import module, pickled

from posgan_fast.models import CheckpointError, Discriminator, Generator, load_discriminator, load_generator
from posgan_fast.models.precision import as_in_block
from posgan_fast.recipes import load_sampler
from posgan_fast.recipes.inversion import optimise

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = dict(num_fp16_res=2, conv_clamp=256)
BFLOAT16 = dict(HALF, half_dtype=torch.bfloat16)
ARCHITECTURES = ("skip", "resnet", "orig")
DTYPES = (torch.float16, torch.bfloat16)
FULL = torch.float32
NO_HALF = r"^half_dtype: expected one of \('float16', 'bfloat16', torch.float16, torch.bfloat16\), got "
BOUND = 1.5e-2  # relative L2 of bfloat16 against float32; measured up to 7e-3


def dtypes_of(network: torch.nn.Module, call) -> dict[str, torch.dtype]:
    """Run ``call``; return the dtype of every convolution's result."""
    found: dict[str, torch.dtype] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.dtype}))
        for name, layer in network.named_modules()
        if getattr(layer, "weight", None) is not None and layer.weight.ndim == 4
    ]
    call()
    for hook in hooks:
        hook.remove()
    return {name.removeprefix("synthesis."): dtype for name, dtype in found.items()}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def half_where(dtypes: dict[str, torch.dtype], dtype: torch.dtype, sides: tuple[int, ...]) -> bool:
    """Whether the blocks of these sides, and no others, are in ``dtype``, and the others in float32."""
    expected = {name: dtype if int(name.split(".")[0][1:]) in sides else FULL for name in dtypes}
    return len(dtypes) > 6 and dtypes == expected


@pytest.mark.parametrize("dtype, device", [(torch.float16, "meta"), (torch.bfloat16, "meta"), (torch.bfloat16, "cpu")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_highest_resolutions_are_in_half_precision(architecture, dtype, device):
    """Images and logits are in float32."""
    options = dict(architecture=architecture, conv_clamp=256, num_fp16_res=2, half_dtype=dtype)
    G, D = generator(32, **options).to(device), discriminator(32, **options).to(device)
    z, real = randn(4, 8).to(device), randn(4, 3, 32, 32).to(device)
    for network, inputs in ((G, z), (D, real)):
        assert half_where(dtypes_of(network, lambda: network(inputs)), dtype, (16, 32))  # noqa: B023
        assert half_where(dtypes_of(network, lambda: network(inputs, force_fp32=True)), dtype, ())  # noqa: B023
    assert G(z).dtype == D(real).dtype == FULL


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_are_near_those_of_float32(architecture):
    options = dict(architecture=architecture, conv_clamp=256)
    full_G, full_D = generator(32, **options), discriminator(32, **options)
    G, D = generator(32, **{**options, **BFLOAT16}), discriminator(32, **{**options, **BFLOAT16})
    z, real = randn(4, 8), randn(4, 3, 32, 32)
    assert 0 < distance(G(z), full_G(z)) <= BOUND and 0 < distance(D(real), full_D(real)) <= BOUND
    assert torch.equal(G(z, force_fp32=True), full_G(z)) and torch.equal(D(real, force_fp32=True), full_D(real))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float16_is_float32_on_the_cpu(architecture):
    """Settings, state and repr stay those of float16."""
    options = dict(architecture=architecture, conv_clamp=256)
    G, D = generator(32, **options, num_fp16_res=2), discriminator(32, **options, num_fp16_res=2)
    z, real = randn(4, 8), randn(4, 3, 32, 32)
    assert half_where(dtypes_of(G, lambda: G(z)), torch.float16, ())
    assert half_where(dtypes_of(D, lambda: D(real)), torch.float16, ())
    assert torch.equal(G(z), generator(32, **options)(z)) and torch.equal(D(real), discriminator(32, **options)(real))
    assert G.num_fp16_res == D.num_fp16_res == 2 and G.half_dtype == D.half_dtype == torch.float16
    assert "num_fp16_res=2, half_dtype=torch.float16" in repr(G)


@pytest.mark.parametrize("number, expected", [(0, []), (1, [16]), (2, [8, 16]), (3, [8, 16]), (100, [8, 16])])
def test_the_number_of_resolutions(number, expected):
    """NVlabs' rule: from max(2 ** (log2(size) + 1 - number), 8) on."""
    G, D = generator(16, num_fp16_res=number), discriminator(16, num_fp16_res=number)
    for blocks in (G.synthesis, D):
        assert [r for r in (4, 8, 16) if getattr(blocks, f"b{r}").dtype == torch.float16] == expected
    assert G.num_fp16_res == D.num_fp16_res == number
    plain = generator(16)
    assert list(G.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in G.state_dict().items())
    if not number:
        assert torch.equal(G(randn(2, 8)), plain(randn(2, 8))) and "num_fp16_res" not in repr(G) + repr(D)


def test_saturated_features_stay_finite():
    """A layer cuts features beyond the range of float16 to conv_clamp ahead of the cast."""
    block = generator(16, **HALF, channel_max=16).synthesis.b16
    x, w = randn(2, 16, 8, 8).half(), randn(2, 12)
    with torch.no_grad():
        block.conv0.bias.fill_(-1e6)
        block.conv1.bias.fill_(1e6)
        y = block.conv0(x, w)
        assert y.shape == (2, 16, 16, 16) and (y == -256).all()
        assert (block.conv1(y, w) == 256).all()


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_penalties_differentiate_twice(architecture):
    """R1 and path length: gradients in float32, finite, and near those of float32."""

    def gradients(**half):
        options = dict(architecture=architecture, conv_clamp=256, **half)
        G, D = generator(16, **options).train(), discriminator(16, **options).train()
        ws = latents(G, 4).requires_grad_()
        image = G.synthesis(ws, noise_mode="const")
        direction = randn(*image.shape, seed=5) / 16
        (pull,) = torch.autograd.grad((image * direction).sum(), ws, create_graph=True)
        real = randn(4, 3, 16, 16).requires_grad_()
        logits = D(real)
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalties = pull.square().sum(2).mean(1).sqrt().mean() + slope.square().sum((1, 2, 3)).mean()
        (penalties + D(image).sum()).backward()
        assert pull.dtype == slope.dtype == FULL
        return [p.grad for network in (G, D) for p in network.parameters() if p.grad is not None]

    half, full = gradients(num_fp16_res=2, half_dtype=torch.bfloat16), gradients()
    assert len(half) == len(full) > 30
    assert all(g.dtype == FULL and bool(g.isfinite().all()) for g in half)
    assert distance(torch.cat([g.flatten() for g in half]), torch.cat([g.flatten() for g in full])) <= 4 * BOUND


def test_layers_take_half_features_beside_parameters_in_float32():
    """The dtype of the features decides; the styles are computed in float32."""
    G, D = generator(16), discriminator(16)
    layers = [G.synthesis.b16.conv0, G.synthesis.b16.conv1, G.synthesis.b16.torgb]
    for dtype in DTYPES:
        for layer in layers:
            styles = []
            hook = layer.affine.register_forward_hook(lambda _, __, y: styles.append(y.dtype))  # noqa: B023
            assert layer(randn(2, 8, 8, 8).to(dtype), randn(2, 12)).dtype == dtype and styles == [FULL]
            hook.remove()
        assert D.b16.conv1(randn(2, 8, 16, 16).to(dtype)).dtype == dtype


def test_float64_stays():
    G, D = generator(16, **BFLOAT16).double(), discriminator(16, **BFLOAT16).double()
    image = G(randn(2, 8).double())
    assert image.dtype == torch.float64
    assert torch.equal(image, generator(16, conv_clamp=256).double()(randn(2, 8).double()))
    assert set(dtypes_of(D, lambda: D(image)).values()) == {torch.float64}
    assert torch.equal(D(image), discriminator(16, conv_clamp=256).double()(image))


def test_autocast_goes_before():
    """Every block runs in autocast's dtype, as without the setting."""
    G, D = generator(16, **BFLOAT16), discriminator(16, **BFLOAT16)
    z, real = randn(2, 8), randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        for force in (False, True):
            image = G(z, force_fp32=force)
            assert torch.equal(image, generator(16, conv_clamp=256)(z)) and image.dtype == FULL
            assert torch.equal(D(real, force_fp32=force), discriminator(16, conv_clamp=256)(real))
        assert set(dtypes_of(D, lambda: D(real)).values()) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [*DTYPES, FULL])
def test_features_keep_their_dtype_beside_float64_and_under_autocast(dtype):
    x, weight = randn(2, 3), randn(3)
    for features, parameters in ((x.double(), weight), (x, weight.double())):
        assert as_in_block(features, dtype, parameters) is features
    for features in (x, x.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            assert as_in_block(features, dtype, weight) is features
        assert as_in_block(features, dtype, weight).dtype == (torch.bfloat16 if dtype == torch.bfloat16 else FULL)


def test_parameters_in_half_precision():
    """Blocks below num_fp16_res run in float32 even then, and so do all by force."""
    options = dict(num_fp16_res=1, half_dtype=torch.bfloat16)
    G, D = generator(16, **options).bfloat16(), discriminator(16, **options).bfloat16()
    z, real = randn(2, 8).bfloat16(), randn(4, 3, 16, 16).bfloat16()
    seen = dtypes_of(G, lambda: G(z)) | {f"D {k}": v for k, v in dtypes_of(D, lambda: D(real)).items()}
    assert all((dtype == torch.bfloat16) == ("b16" in name) for name, dtype in seen.items())
    assert set(dtypes_of(D, lambda: D(real, force_fp32=True)).values()) == {FULL}
    assert distance(G(z, force_fp32=True), generator(16)(z.float())) <= BOUND


@pytest.mark.parametrize("options", [dict(head="spe", up_after_conv=True), dict(no_pad=True), dict(c_dim=3)])
def test_other_configurations(options):
    G, full = generator(16, **BFLOAT16, **options), generator(16, conv_clamp=256, **options)
    z, c = randn(2, 8), torch.eye(3)[:2] if "c_dim" in options else None
    scale = 0 if "c_dim" in options else 2
    assert distance(G(z, c, scale=scale), full(z, c, scale=scale)) <= BOUND
    maps = [None if size is None else randn(2, *size) for size in full.synthesis.pad_map_sizes()]
    noises = [randn(2, 1, *size) for size in full.synthesis.noise_sizes()]
    images = [network(z, c, pad_maps=maps, noises=noises) for network in (G, full)]
    assert distance(*images) <= BOUND


def test_copies_pickles_and_repr():
    G, D = generator(16, **HALF, half_dtype="bfloat16"), discriminator(16, **BFLOAT16)
    z = randn(2, 8)
    for other in (copy.deepcopy((G, D)), pickle.loads(pickle.dumps((G, D)))):
        assert torch.equal(other[0](z), G(z)) and torch.equal(other[1](G(z)), D(G(z)))
        assert other[0].num_fp16_res == 2 and other[1].half_dtype == torch.bfloat16
    for network in (G, D):
        assert "num_fp16_res=2, half_dtype=torch.bfloat16" in repr(network)


def test_compiles_and_exports():
    options = dict(num_fp16_res=1, half_dtype=torch.bfloat16)
    G, D = generator(8, **options), discriminator(8, **options)
    z = randn(2, 8)

    def both(z):
        return D(G(z))

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(compiled, both(z), rtol=1e-2, atol=1e-2)
    compiled.sum().backward()
    assert G.synthesis.b8.conv0.weight.grad.isfinite().all()
    with torch.no_grad():
        program = torch.export.export(G, (z,))
    assert distance(program.module()(z), G(z)) <= 1e-3
    assert any(node.meta["val"].dtype == torch.bfloat16 for node in program.graph.nodes if _is_tensor(node))


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


@pytest.mark.parametrize("network", [Generator, Discriminator])
@pytest.mark.parametrize(
    "given, kind, match",
    [
        (dict(num_fp16_res=-1), ValueError, "^num_fp16_res: expected an int >= 0, got -1"),
        (dict(num_fp16_res=True), TypeError, "^num_fp16_res: expected an int, got bool"),
        (dict(num_fp16_res="4"), TypeError, "^num_fp16_res: expected an int, got str"),
        (dict(num_fp16_res=1.0), TypeError, "^num_fp16_res: expected an int, got float"),
        (dict(num_fp16_res=None), TypeError, "^num_fp16_res: expected an int, got NoneType"),
        (dict(half_dtype=FULL), ValueError, NO_HALF + "torch.float32"),
        (dict(half_dtype=torch.int32), ValueError, NO_HALF + "torch.int32"),
        (dict(half_dtype="fp16"), ValueError, NO_HALF + "'fp16'"),
        (dict(half_dtype=16), TypeError, NO_HALF + "16"),
        (dict(half_dtype=[]), TypeError, NO_HALF + r"\[\]"),
    ],
)
def test_wrong_arguments(network, given, kind, match):
    with pytest.raises(kind, match=match):
        network(8, channel_max=8, **given)


def test_wrong_arguments_of_calls():
    G, D = generator(8), discriminator(8)
    for call in (lambda: G(randn(1, 8), force_fp32=1), lambda: D(randn(1, 3, 8, 8), force_fp32="no")):
        with pytest.raises(TypeError, match="^force_fp32: expected a bool, got"):
            call()


def test_the_documented_call_by_force():
    """README's and the classes' documentation name the call; the mapping has no half precision and takes no force."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "`generator(z, force_fp32=True)`" in readme and "`generator.synthesis(ws, force_fp32=True)`" in readme
    assert "generator(z, force_fp32=True)" in Generator.__doc__ and "image, force_fp32=True)" in Discriminator.__doc__
    G, z = generator(16, **BFLOAT16), randn(1, 8)
    assert torch.equal(G.synthesis(G.mapping(z), force_fp32=True), G(z, force_fp32=True))
    with pytest.raises(TypeError, match="force_fp32"):
        G.mapping(z, force_fp32=True)


# Loading


def facts_of(sides: tuple[int, ...], prefix: str = "", **attributes) -> dict[str, dict]:
    """Attributes of the blocks of 4 to 32 pixels, and of the module around them."""
    flags = {f"{prefix}b{r}": {"use_fp16": r in sides} for r in (4, 8, 16, 32)}
    return {prefix.rstrip("."): attributes, f"{prefix}b4.conv1": {"conv_clamp": 256}, **flags}


def loaded(tmp_path, facts: dict[str, dict], **overrides) -> Generator:
    path = tmp_path / "network.pkl"
    path.write_bytes(pickled({"G_ema": module(generator_state(), "Generator", facts)}))
    return load_generator(path, **overrides)


@pytest.mark.parametrize(
    "sides, stored, expected",
    [
        ((), {}, 0),
        ((32,), {}, 1),
        ((8, 16, 32), {}, 3),
        ((8, 16, 32), {"_init_kwargs": {"num_fp16_res": 4}}, 4),  # which means the same here
        ((8, 16, 32), {"num_fp16_res": 5}, 5),  # stylegan3
        ((16, 32), {"_init_kwargs": {"num_fp16_res": 4}}, 2),  # a script has changed a block
        ((), {"_init_kwargs": {"num_fp16_res": 4}}, 0),
    ],
)
def test_pickles_load_with_their_setting(tmp_path, sides, stored, expected):
    G = loaded(tmp_path, facts_of(sides, "synthesis.", **stored))
    assert G.num_fp16_res == G.report.settings["num_fp16_res"] == expected and G.half_dtype == torch.float16
    assert G.report.settings["conv_clamp"] == 256 and "num_fp16_res" not in G.report.assumed
    assert [r for r in (4, 8, 16, 32) if getattr(G.synthesis, f"b{r}").dtype == torch.float16] == list(sides)
    assert ("run in float16 off the CPU, as there" in str(G.report)) == bool(sides)


def test_settings_without_flags_of_blocks(tmp_path):
    for facts in (
        {"": {"_init_kwargs": {"synthesis_kwargs": {"num_fp16_res": 2}}}},  # stylegan2-ada
        {"": {"_init_kwargs": {"num_fp16_res": 2}}},  # stylegan3
        {"synthesis": {"_init_kwargs": {"num_fp16_res": 2}}},
    ):
        assert loaded(tmp_path, facts).num_fp16_res == 2
    for value in (-1, "4", True, 1.5):
        with pytest.raises(CheckpointError, match="num_fp16_res: expected an int"):
            loaded(tmp_path, {"": {"_init_kwargs": {"num_fp16_res": value}}})
    for sides in ((8,), (4, 8, 16, 32), (16,)):
        G = loaded(tmp_path, facts_of(sides, "synthesis."))
        assert G.num_fp16_res == 0 and "in half precision there, in float32 here" in str(G.report)


def test_overrides_of_the_loaders(tmp_path):
    facts = facts_of((16, 32), "synthesis.")
    z = randn(2, 5)
    half, full = loaded(tmp_path, facts), loaded(tmp_path, facts, num_fp16_res=0)
    assert full.num_fp16_res == 0 and "run in float16" not in str(full.report)
    assert half.num_fp16_res == 2 and torch.equal(half(z), full(z))
    other = loaded(tmp_path, facts, half_dtype="bfloat16")
    assert other.num_fp16_res == 2 and other.half_dtype == torch.bfloat16
    assert torch.equal(other(z, force_fp32=True), full(z)) and 0 < distance(other(z), full(z)) <= BOUND
    plain = load_generator(generator_state())
    assert plain.num_fp16_res == 0 and plain.report.assumed["num_fp16_res"].startswith("0; ")
    again = load_generator(generator_state(), num_fp16_res=2, conv_clamp=256, half_dtype="bfloat16")
    assert torch.equal(again(z), other(z)) and "num_fp16_res" not in again.report.assumed


def test_discriminators_load_with_their_setting(tmp_path):
    path = tmp_path / "network.pkl"
    facts = {"": {"_init_kwargs": {"num_fp16_res": 4}}, "b4.conv": {"conv_clamp": 256}}
    facts |= {f"b{r}": {"use_fp16": True} for r in (8, 16, 32)}
    path.write_bytes(pickled({"D": module(discriminator_state(), "Discriminator", facts)}))
    D, real = load_discriminator(path), randn(4, 3, 32, 32)
    assert D.num_fp16_res == 4 and D.b8.dtype == torch.float16
    assert torch.equal(D(real), load_discriminator(path, num_fp16_res=0)(real))
    assert half_where(dtypes_of(D.to("meta"), lambda: D(real.to("meta"))), torch.float16, (8, 16, 32))


# Training and inversion


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_training(half, data, tmp_path):
    options = dict(num_fp16_res=1, half_dtype=half, conv_clamp=256, iterations=2)
    G = load_sampler(run("mspie", data, tmp_path / "run", **options)).generator
    assert G.num_fp16_res == 1 and str(G.half_dtype) == f"torch.{half}" and G.synthesis.b8.conv1.clamp == 256
    assert all(p.dtype == FULL and bool(p.isfinite().all()) for p in G.parameters())


def test_inversion_runs_in_float32():
    """Gradients of a mean over pixels would vanish in float16; the CPU shows the rule in bfloat16."""
    pictures = randn(1, 3, 16, 16)
    histories = [
        optimise(generator(16, conv_clamp=256, **half), pictures, layers=(0, 1), steps=2)[1]
        for half in ({}, dict(num_fp16_res=2, half_dtype=torch.bfloat16))
    ]
    assert torch.equal(*histories)
