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


def test_drawn_noise_is_exported_with_any_batch():
    """Batches that equal a side of the noise too."""

    class Drawn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.synthesis = Generator(16, channel_max=8, mapping_layers=1).synthesis

        def forward(self, ws):
            return self.synthesis(ws, noise_mode="random")

    module = Drawn()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.zeros(3, 6, 512),), dynamic_shapes=({0: batch},)).module()
    assert [program(torch.zeros(n, 6, 512)).shape[0] for n in (1, 2, 4, 8, 16, 33)] == [1, 2, 4, 8, 16, 33]


def test_a_generator_in_training_mode_is_transformed_and_its_average_stays():
    generator = Generator(8, channel_max=8, mapping_layers=1, z_dim=8, w_dim=8)
    z, before = torch.randn(3, 8), generator.mapping.w_avg.clone()

    def loss(parameters, z):
        return torch.func.functional_call(generator, parameters, (z[None],)).square().mean()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")
    gradients = per_sample(dict(generator.named_parameters()), z)
    assert gradients["synthesis.b4.conv1.weight"].shape == (3, 8, 8, 3, 3)
    assert torch.equal(generator.mapping.w_avg, before)
    generator(z, skip_w_avg_update=True)
    assert torch.equal(generator.mapping.w_avg, before)
    generator(z)
    assert not torch.equal(generator.mapping.w_avg, before)
