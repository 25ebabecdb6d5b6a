"""The noise of generators whose caller names no mode: drawn anew in training, constant in evaluation."""

from __future__ import annotations

import pytest
import torch

from posgan_fast.models import Generator, load_generator


def _generator(**kwargs) -> Generator:
    torch.manual_seed(0)
    network = Generator(8, z_dim=8, w_dim=8, mapping_layers=2, channel_max=8, **kwargs)
    for name, parameter in network.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.ones_(parameter)
    return network


Z = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@torch.no_grad()
def test_training_draws_and_evaluation_repeats(architecture):
    network = _generator(architecture=architecture)

    def seeded(training, **kwargs):
        network.train(training)
        ws = network.mapping(Z, skip_w_avg_update=True)
        torch.manual_seed(2)
        image = network.synthesis(ws, **kwargs)
        torch.manual_seed(2)
        assert torch.equal(network(Z, **kwargs), image)
        return image

    const, drawn, none = (seeded(False, noise_mode=mode) for mode in ("const", "random", "none"))
    assert not torch.equal(const, drawn)
    assert torch.equal(seeded(False), const) and torch.equal(seeded(True), drawn)
    for mode, expected in {"const": const, "random": drawn, "none": none}.items():
        assert torch.equal(seeded(True, noise_mode=mode), expected), "what is named holds in both modes"
    noises = [torch.zeros(size) for size in network.synthesis.noise_sizes()]
    assert torch.equal(seeded(True, noises=noises), none), "and so does what is given"
    assert not torch.equal(network(Z), network(Z))


@torch.no_grad()
def test_loaded_generators_repeat():
    network = _generator()
    loaded = load_generator(network.state_dict())
    assert torch.equal(loaded(Z), loaded(Z)) and torch.equal(loaded(Z), network.eval()(Z))


@torch.no_grad()
def test_compiled_and_exported_code_keeps_the_mode_of_the_layer():
    layer = _generator().synthesis.b4.conv1
    given = torch.randn(2, 8, 4, 4), Z
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for training in (True, False):
        layer.train(training)
        exported = torch.export.export(layer, given).module()
        for call in (compiled, exported):
            assert torch.equal(call(*given), call(*given)) is not training


@pytest.mark.parametrize("no_pad", [False, True])
def test_padding_maps_for_every_entry(no_pad):
    synthesis = _generator(no_pad=no_pad).eval().synthesis
    sizes = synthesis.pad_map_sizes()
    pad_maps = [None if size is None else torch.zeros(2, *size) for size in sizes]  # as its docstring says
    image = synthesis(torch.randn(2, synthesis.num_ws, 8), pad_maps)
    assert image.isfinite().all() and (None in sizes) is no_pad
