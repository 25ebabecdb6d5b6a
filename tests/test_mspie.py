"""The configurations of MS-PIE: what they are, and that each trains at each of its scales."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from posgan_fast.models import load_discriminator, load_generator, mspie

SMALL = dict(channel_max=8, z_dim=8, w_dim=8, mapping_layers=1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(name, **overrides):
    """The networks of a configuration for images of 16 pixels at scale 0."""
    return mspie.generator(name, size=16, **SMALL, **overrides), mspie.discriminator(name, size=16, channel_max=8)


@pytest.mark.parametrize("name", mspie.CONFIGS)
def test_networks_train_at_every_scale(name):
    G, D = small(name)
    for scale in (*mspie.CONFIGS[name].scales, *([(1, 3)] if len(mspie.CONFIGS[name].scales) > 1 else [])):
        rows, columns = scale if isinstance(scale, tuple) else (scale, scale)
        image = G(torch.randn(2, 8), scale=scale)
        assert image.shape == (2, 3, 4 * (4 + rows), 4 * (4 + columns))
        F.softplus(-D(image)).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in G.parameters())
        assert sum(float(p.grad.abs().sum()) for p in G.synthesis.parameters()) > 0
        G.zero_grad(), D.zero_grad()


@pytest.mark.parametrize("name", mspie.CONFIGS)
def test_states_have_the_published_shapes(name):
    """The published names and widths: 512 channels up to 64 pixels (one multiplier less: 32), then halved."""
    config = mspie.CONFIGS[name]
    with torch.device("meta"):
        G, D = mspie.generator(name), mspie.discriminator(name)
    state = {name: tuple(value.shape) for name, value in G.state_dict().items()}
    border = 2 if config.no_pad else 0
    first = 2 if config.head == "csg" else 512
    assert state.get("synthesis.b4.const") == ((512, 4 + border, 4 + border) if config.head == "constant" else None)
    assert state["synthesis.b4.conv1.weight"] == (512, first, 3, 3) and state["synthesis.b4.conv1.affine.bias"] == (
        first,
    )
    r, before = 8, 512
    while r <= config.size:
        c = min(16384 * config.channel_multiplier // r, 512)
        assert state[f"synthesis.b{r}.conv0.weight"] == (c, before, 3, 3)
        assert state[f"synthesis.b{r}.conv1.weight"] == (c, c, 3, 3)
        assert state[f"synthesis.b{r}.conv0.noise_const"] == (r + border, r + border)
        assert state[f"synthesis.b{r}.conv1.noise_const"] == (r, r)
        r, before = 2 * r, c
    assert G.num_ws == (14 if config.size == 256 else 16) and f"synthesis.b{r}.conv0.weight" not in state
    pooled = len(config.scales) > 1
    assert D.state_dict()["b4.fc.weight"].shape == (512, 2048 if pooled else 8192)


def test_table():
    """Table 5, and the released files of the two configurations beside it."""
    table = mspie.CONFIGS
    rows = {"c": ("constant", False), "d": ("csg", False), "e": ("spe", True), "f": ("spe", False), "g": ("spe", False)}
    for name, (head, interp) in rows.items():
        config = table[name]
        assert (config.head, config.up_after_conv, config.no_pad) == (head, True, False)
        assert config.interp_head == interp and config.scales == (0, 2, 4) and config.sides == (256, 384, 512)
    for name, twin in zip("hijk", "cdef", strict=True):
        assert table[name].no_pad and (table[name].head, table[name].interp_head) == (
            table[twin].head,
            table[twin].interp_head,
        )
    assert (table["g"].channel_multiplier, table["g"].discriminator_multiplier) == (1, 1)
    assert table["f-896"].sides == (256, 512, 896) and table["f-1024"].sides == (256, 512, 1024)
    assert (table["f-1024"].channel_multiplier, table["f-1024"].discriminator_multiplier) == (1, 2)
    assert table["a"].generator["size"] == 256 and table["b"].generator["size"] == 512
    assert [table[f"table2-{letter}"].head for letter in "abcde"] == ["constant"] * 3 + ["csg", "spe"]
    assert [table[f"table2-{letter}"].no_pad for letter in "abcde"] == [False, False, True, True, True]


@pytest.mark.parametrize("name", ["c", "e", "j", "k", "table2-b"])
def test_settings_load_their_weights(name):
    """The table supplies the arguments that no tensor tells."""
    G, D = small(name)
    arguments = mspie.CONFIGS[name].generator | dict(size=16)
    loaded = load_generator(G.eval().state_dict(), **arguments)
    z = torch.randn(2, 8)
    scale = 2 if len(mspie.CONFIGS[name].scales) > 1 else 0
    noises = [torch.randn(size) for size in G.synthesis.noise_sizes(scale)]
    assert torch.equal(loaded(z, scale=scale, noises=noises), G(z, scale=scale, noises=noises))
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_discriminator(D.state_dict())(image), D(image))


def test_refusals():
    with pytest.raises(ValueError, match="^name: expected one of .*'f-896'.*, got 'l'"):
        mspie.generator("l")
    with pytest.raises(TypeError, match="^name: expected one of"):
        mspie.discriminator(3)
