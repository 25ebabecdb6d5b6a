"""Training PadInv's encoder: losses by their formulas, networks that judge images, runs, and refusals."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_trainings import assert_equal, log
from torch.nn import functional as F

from posgan_fast import cli
from posgan_fast.models import CheckpointError, Discriminator, Generator, PadInvEncoder
from posgan_fast.recipes import (
    MSPIE,
    MSPIESettings,
    PadInv,
    PadInvSettings,
    SinGAN,
    SinGANSettings,
    checkpoint,
    images,
    load_trained_encoder,
    losses,
    padinv,
    perception,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALL = dict(size=32, batch=4, iterations=4, log_every=1)


def make_generator(size: int = 16, seed: int = 0, **more) -> Generator:
    torch.manual_seed(seed)
    network = Generator(size, z_dim=16, w_dim=16, channel_max=16, mapping_layers=1, **more)
    network.mapping.w_avg.normal_()
    return network.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files: generators of 16 and 32 pixels, one with a discriminator; stand-ins for LPIPS and ArcFace."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(1)
    for size in (16, 32):
        D = Discriminator(size, channel_max=16)
        torch.save({"G_ema": make_generator(size).state_dict(), "D": D.state_dict()}, folder / f"gan{size}.pt")
    torch.save(make_generator().state_dict(), folder / "generator.pt")
    lpips, face = perception.LPIPS(), perception.ArcFace(width=8, features=12)
    for network in (lpips, face):
        for value in network.state_dict().values():
            if value.is_floating_point() and value.ndim < 4:
                value.uniform_(0.5, 1.5)
    for weight in lpips.weights():
        weight.detach().uniform_(0, 1)
    torch.save({**lpips.state_dict(), "classifier.1.weight": torch.zeros(2, 2)}, folder / "lpips.pt")
    torch.save(face.state_dict(), folder / "face.pt")
    return folder


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    monkeypatch.setattr(perception.importlib.util, "find_spec", lambda name: None)


def settings(pictures, files, out, **more) -> PadInvSettings:
    return PadInvSettings(**{"data": pictures, "out": out, "generator": files / "generator.pt", **SMALL, **more})


def recipe(data, files, **more) -> PadInv:
    return PadInv(settings(data, files, "out", **more), CPU)


def run(pictures, files, out, resume=False, **more):
    return train(PadInv, settings(pictures, files, out, **more), resume=resume, quiet=True)


# Losses


def test_general_losses_in_float64():
    random = np.random.default_rng(0)
    fake, real, x, w = (random.normal(size=shape) for shape in ((5, 1), (5, 1), (3, 2, 4, 4), (2, 4, 4)))
    a, b, t, u = (torch.from_numpy(value) for value in (fake, real, x, w))
    assert losses.wasserstein_generator(a).item() == pytest.approx(-fake.mean(), rel=1e-14)
    assert losses.wasserstein_discriminator(a, b).item() == pytest.approx(fake.mean() - real.mean(), rel=1e-13)
    assert losses.norm(t).item() == pytest.approx(np.mean([np.sqrt((s**2).sum()) for s in x]), rel=1e-14)
    t.requires_grad_()
    quadratic = (t.square() * u).sum((1, 2, 3)) / 2  # whose gradient is t * u
    expected = np.mean([np.sqrt(((s * w) ** 2).sum()) for s in x])
    assert losses.gradient_norm(quadratic, t).item() == pytest.approx(expected, rel=1e-14)


WEIGHTS = {  # identity, adversarial
    "ffhq": (0.1, 0), "church": (0, 0.03), "bedroom": (0, 0.05),
    "paper-ffhq": (0.1, 0), "paper-church": (0, 0.03), "paper-bedroom": (0, 0.03),
}  # fmt: skip


def test_the_weights_of_all_configurations():
    assert {name: (config.identity, config.adversarial) for name, config in padinv.CONFIGS.items()} == WEIGHTS
    for name, config in padinv.CONFIGS.items():
        assert (config.pixel, config.perceptual, config.regularisation) == (1, 0.8, 0.003)
        assert (config.form, config.mirror) == ("paper" if "paper" in name else "released", "ffhq" in name)


@pytest.mark.parametrize("config", ["ffhq", "church", "paper-ffhq", "paper-bedroom"])
def test_the_losses_of_a_configuration(config, data, files):
    """All terms from images and latents by the formulas, in float64."""
    weights = WEIGHTS[config]
    paper = config.startswith("paper")
    one = recipe(
        data, files, config=config, generator=files / "gan32.pt", perceptual=files / "lpips.pt",
        identity=files / "face.pt", latents=12,
    )  # fmt: skip
    x = images.to_float(next(one.batches(0)))
    ws, made = one.invert(x)
    loss, terms = one.encoder_loss(x)
    assert made.shape == x.shape == (4, 3, 32, 32) and ws.shape == (4, 12, 16)

    ws, made, real = ws.detach().double(), made.detach().double(), x.double()
    difference = (made - real).numpy()
    lpips, face = (copy.deepcopy(network).double() for network in (one.perceptual, one.identity or torch.nn.Identity()))
    expected = {
        "pixel": np.mean([np.sqrt((d**2).sum()) for d in difference]) if paper else np.mean(difference**2),
        "perceptual": (lpips.norm if paper else lpips)(made, real).mean().item(),
        "regularisation": np.mean([np.sqrt((w**2).sum()) for w in (ws - make_generator(32).mapping.w_avg).numpy()]),
    }
    if weights[0]:
        expected["identity"] = 1 - np.mean([float(a @ b) for a, b in zip(face(made), face(real), strict=True)])
    if weights[1]:
        D = copy.deepcopy(one.D).double()
        real.requires_grad_()
        a, b = D(made), D(real)
        (grad,) = torch.autograd.grad(b.sum(), real)
        lengths = np.array([np.sqrt((g.numpy() ** 2).sum()) for g in grad])
        a, b = a.detach().numpy(), b.detach().numpy()
        expected["adversarial"] = -np.mean(a) if paper else np.mean(np.log1p(np.exp(-a)))
        main = np.mean(a) - np.mean(b) if paper else np.mean(np.log1p(np.exp(a))) + np.mean(np.log1p(np.exp(-b)))
        penalty = np.mean(lengths) if paper else np.mean(lengths**2)
        loss_D, numbers = one.discriminator_loss(x)
        assert loss_D.item() == pytest.approx(main + 5 * penalty, rel=1e-4)
        assert numbers["penalty"].item() == pytest.approx(penalty, rel=1e-3)
        assert (one.encoder_loss(x)[1]["adversarial"].requires_grad, loss_D.requires_grad) == (True, True)
    found = {name: value.item() for name, value in terms.items()}
    assert found == {"loss_E": loss.item()} | {name: pytest.approx(v, rel=1e-4) for name, v in expected.items()}
    factors = {"pixel": 1, "perceptual": 0.8, "regularisation": 0.003, "identity": weights[0]}
    factors["adversarial"] = weights[1]
    assert loss.item() == pytest.approx(sum(factors[name] * value for name, value in expected.items()), rel=1e-4)


def test_images_are_averaged_to_the_smaller_side(data, files):
    one = recipe(data, files, generator=files / "gan32.pt", size=32)
    small = recipe(data, files)
    x = images.to_float(next(one.batches(0)))
    assert (one.side, small.side) == (32, 16)
    pixel = small.encoder_loss(x)[1]["pixel"]
    torch.testing.assert_close(pixel, F.mse_loss(small.invert(x)[1], F.avg_pool2d(x, 2)))
    large = PadInv(settings(data, files, "out"), CPU)
    large.side = 8  # as for an encoder of smaller images
    torch.testing.assert_close(large.invert(x)[1], F.avg_pool2d(small.invert(x)[1], 2))


def test_a_generator_of_blue_green_red(data, files):
    """The encoder sees RGB, the discriminator what the generator makes."""
    one = recipe(data, files, generator=files / "gan16.pt", config="church")
    x = images.to_float(next(one.batches(0)))
    rgb = one.invert(x)[1]
    score = one.D(rgb.detach())
    one.bgr = True
    assert torch.equal(one.invert(x)[1], rgb.flip(1))
    torch.testing.assert_close(one._judge(one.D, one.invert(x)[1]), score)


def test_adam_of_both_networks(data, files):
    one = recipe(data, files, config="church", generator=files / "gan16.pt")
    e, d = (optimizer.param_groups[0] for optimizer in one.optimizers.values())
    assert (e["lr"], e["betas"]) == (1e-4, (0.9, 0.999))
    assert d["lr"] == pytest.approx(1e-4 * 16 / 17) and d["betas"] == pytest.approx(
        (0.9 ** (16 / 17), 0.99 ** (16 / 17))
    )
    assert not any(p.requires_grad for p in one.G.parameters()) and not one.G.training and one.encoder.training


# Networks that judge


def alexnet(weights, x):
    """The five results of ReLU, in float64, one pixel's channels at a time divided by their norm."""
    x = (x - torch.tensor(MEAN).double().reshape(3, 1, 1)) / torch.tensor(STD).double().reshape(3, 1, 1)
    found = []
    for k, (stride, padding, pool) in {0: (4, 2, 0), 3: (1, 2, 1), 6: (1, 1, 1), 8: (1, 1, 0), 10: (1, 1, 0)}.items():
        x = F.max_pool2d(x, 3, 2) if pool else x
        x = F.conv2d(x, weights[f"features.{k}.weight"], weights[f"features.{k}.bias"], stride, padding).clamp(min=0)
        found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
    return found


@pytest.mark.parametrize("sides", [(31, 31), (64, 47)])
def test_lpips(sides, files):
    network = perception.load_lpips(files / "lpips.pt")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    weights = {name: value.double() for name, value in torch.load(files / "lpips.pt").items()}
    a, b = torch.rand(2, 2, 3, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    layers = [
        weights[f"lin{k}.model.1.weight"] * (p - q).square()
        for k, (p, q) in enumerate(zip(alexnet(weights, a), alexnet(weights, b), strict=True))
    ]
    distance = sum(layer.sum(1).mean((1, 2)) for layer in layers)
    norm = sum(layer.sum((1, 2, 3)) for layer in layers).sqrt()
    torch.testing.assert_close(network.double()(a, b), distance)
    torch.testing.assert_close(network.norm(a, b), norm)
    torch.testing.assert_close(network.float()(a.float(), b.float()), distance.float())
    black = torch.zeros(1, 3, *sides, requires_grad=True)  # equal images, whose norm is 0
    network.norm(black, torch.zeros(1, 3, *sides)).sum().backward()
    assert bool(black.grad.isfinite().all())
    with pytest.raises(ValueError, match=r"^images: expected at least 31 pixels a side, got shape \(1, 3, 30, 40\)"):
        network(torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40))


@pytest.mark.parametrize("side", [256, 64])
def test_arcface(side, files):
    """What reaches the first convolution, and the last layers, by hand; the blocks are those of the encoder."""
    network = perception.load_arcface(files / "face.pt").double()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    seen = {}
    network.input_layer.register_forward_hook(lambda module, x, y: seen.update(x=x[0]))
    network.body.register_forward_hook(lambda module, x, y: seen.update(y=y))
    image = torch.rand(2, 3, side, side, dtype=torch.float64)
    found = network(image)
    resized = image if side == 256 else F.interpolate(image, size=(256, 256), mode="bilinear")
    torch.testing.assert_close(seen["x"], F.adaptive_avg_pool2d(resized[:, :, 35:223, 32:220], (112, 112)))
    s = {name: value.double() for name, value in torch.load(files / "face.pt").items() if name.startswith("output")}

    def normalised(y, k, shape):
        mean, var, w, b = (
            s[f"output_layer.{k}.{name}"].reshape(shape) for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * w + b

    y = normalised(seen["y"], 0, (-1, 1, 1)).flatten(1) @ s["output_layer.3.weight"].T + s["output_layer.3.bias"]
    y = normalised(y, 4, (-1,))
    torch.testing.assert_close(found, y / y.square().sum(1, keepdim=True).sqrt())
    encoder = PadInvEncoder(64, num_ws=1, width=8, padding=None)
    report = padinv.load_backbone(encoder, files / "face.pt")
    x = seen["x"].float()
    with torch.no_grad():
        stages = torch.nn.Sequential(encoder.input_layer, *encoder.backbone_stages).eval()
        torch.testing.assert_close(stages(x), seen["y"].float(), rtol=1e-3, atol=1e-4)
    assert report.family == "psp"


def test_files_of_networks_that_judge(files, tmp_path):
    lpips, face = torch.load(files / "lpips.pt"), torch.load(files / "face.pt")
    path = tmp_path / "x.pt"
    cases = [
        (perception.load_lpips, {**lpips, "features.3.weight": torch.zeros(192, 64, 3, 3)}, "^perceptual: .*x.pt: does "
         r"not fit into LPIPS: features.3.weight: expected shape \[192, 64, 5, 5\], got \[192, 64, 3, 3\]$"),
        (perception.load_lpips, {k: v for k, v in lpips.items() if k != "lin2.model.1.weight"},
         "^perceptual: .*x.pt: does not fit into LPIPS: lin2.model.1.weight is missing$"),
        (perception.load_lpips, {**lpips, "lin1.model.1.weight": torch.full((1, 192, 1, 1), -1.0)},
         "^perceptual: lin1.model.1.weight: expected numbers >= 0, got negative ones$"),
        (perception.load_lpips, {**lpips, "features.0.bias": torch.zeros(64, dtype=torch.int32)},
         "^perceptual: features.0.bias: expected floating point of 16 to 64 bits, got torch.int32$"),
        (perception.load_lpips, [1], "^perceptual: .*x.pt: expected a state dictionary, got list$"),
        (perception.load_arcface, lpips, "^identity: .*x.pt: expected ArcFace's IR-SE-50: state: body.23.res_layer.1."
         "weight is missing$"),
        (perception.load_arcface, {**face, "output_layer.4.bias": torch.zeros(3)},
         r"^identity: .*x.pt: does not fit into ArcFace: output_layer.4.bias: expected shape \[12\], got \[3\]$"),
    ]  # fmt: skip
    for load, content, message in cases:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load(path)
    path.write_bytes(b"text")
    with pytest.raises(CheckpointError, match="^perceptual: .*x.pt: neither a file of torch nor a pickle"):
        perception.load_lpips(path)
    with pytest.raises(FileNotFoundError, match="^identity: no such file: .*none.pt$"):
        perception.load_arcface(tmp_path / "none.pt")


def test_lpips_of_installed_packages(data, files, tmp_path, monkeypatch):
    """The package's weights and AlexNet's, from where torchvision stores it; nothing is imported."""
    monkeypatch.undo()
    package, hub = tmp_path / "site" / "lpips", tmp_path / "home" / "hub" / "checkpoints"
    (package / "weights" / "v0.1").mkdir(parents=True)
    hub.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('torchvision is broken')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    paths, why = perception.installed_lpips()
    assert not paths and why == f"{hub / perception.ALEXNET} is missing"
    whole = torch.load(files / "lpips.pt")
    torch.save({k: v for k, v in whole.items() if k.startswith("features")}, hub / perception.ALEXNET)
    torch.save({k: v for k, v in whole.items() if k.startswith("lin")}, package / "weights" / "v0.1" / "alex.pth")
    one = recipe(data, files, generator=files / "gan32.pt")
    assert_equal(one.perceptual.state_dict(), perception.load_lpips(files / "lpips.pt").state_dict())
    assert one.notes == ["the identity term is off: no file given"]
    (hub / perception.ALEXNET).write_bytes(b"")
    one = recipe(data, files, generator=files / "gan32.pt")
    assert one.perceptual is None and "is off: no file given, and perceptual: " in one.notes[0]


# Runs


@pytest.mark.parametrize("config", ["church", "paper-ffhq"])
def test_a_run_that_resumes_ends_as_one_that_never_stopped(config, data, files, tmp_path):
    more = dict(config=config, generator=files / "gan16.pt", sample_every=2, latents=8)  # the eighth reads all features
    whole = run(data, files, tmp_path / "whole", **more)
    run(data, files, tmp_path / "parts", **more, iterations=3)
    parts = run(data, files, tmp_path / "parts", resume=True, **more)
    content = checkpoint.load(whole)
    assert_equal(content, checkpoint.load(parts))
    assert log(tmp_path / "whole") == log(tmp_path / "parts") and len(log(tmp_path / "parts")) == 4
    expected = {"church": ["encoder", "discriminator"], "paper-ffhq": ["encoder"]}[config]
    assert list(content["models"]) == list(content["optimizers"]) == expected
    assert (tmp_path / "whole" / "samples" / "0000004.png").stat().st_size > 1000
    first = recipe(data, files, **more)
    before, after = first.encoder.state_dict(), content["models"]["encoder"]
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == ["latent_average"]
    if config == "church":
        assert_equal(first.D.state_dict(), torch.load(files / "gan16.pt")["D"])
        assert not torch.equal(first.D.b4.fc.weight, content["models"]["discriminator"]["b4.fc.weight"])


def test_the_trained_encoder_loads_for_its_generator_only(data, files, tmp_path):
    path = run(data, files, tmp_path / "out", iterations=2, latents=8)
    G = make_generator()
    encoder = load_trained_encoder(path, G)
    assert (encoder.num_ws, encoder.pad_layers, encoder.training) == (8, 2, False)
    assert torch.equal(encoder.latent_average, G.mapping.w_avg.expand(8, -1))
    one = recipe(data, files, latents=8)
    one.load(checkpoint.load(path), path)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = encoder(x), one.encoder.eval()(x)
        made = G.synthesis(ours[0][:, :6], pad_maps=ours[1], noise_mode="const")
        torch.testing.assert_close(one.invert(x)[1], made)
    assert_equal(ours, theirs)
    with pytest.raises(CheckpointError, match="checkpoint.pt: .*generator: expected the one that the encoder was trai"):
        load_trained_encoder(path, make_generator(seed=2))
    with pytest.raises(TypeError, match="^generator: expected a StyleGAN2 generator, got Discriminator"):
        load_trained_encoder(path, Discriminator(8, channel_max=8))
    content = checkpoint.load(path)
    content["encoder_settings"]["wide"] = 3
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="checkpoint.pt: damaged: encoder_settings or models: "):
        load_trained_encoder(path, G)


def test_a_run_goes_on_with_its_generator_and_its_terms(data, files, tmp_path):
    mine = tmp_path / "generator.pt"
    torch.save(make_generator(32).state_dict(), mine)
    path = run(data, files, tmp_path / "out", iterations=1, generator=mine)
    before = path.read_bytes()
    torch.save(make_generator(32, seed=3).state_dict(), mine)
    with pytest.raises(CheckpointError, match="checkpoint.pt: state of the run does not fit: generator: expected the"):
        run(data, files, tmp_path / "out", resume=True, generator=mine)
    torch.save(make_generator(32).state_dict(), mine)
    content = checkpoint.load(path)
    torch.save(content | {"terms": ["pixel", "perceptual", "regularisation"]}, path)
    with pytest.raises(
        CheckpointError, match="expected the terms pixel, perceptual, regularisation, got pixel, regula"
    ):
        run(data, files, tmp_path / "out", resume=True, generator=mine)
    path.write_bytes(before)
    run(data, files, tmp_path / "out", resume=True, generator=mine, iterations=2)


def test_notes_name_what_is_off(data, files):
    off = "the perceptual term is off: no file given, and images of 16 pixels, less than the 31 of LPIPS"
    assert recipe(data, files).notes == [off, "the identity term is off: no file given"]
    one = recipe(data, files, config="church", generator=files / "gan32.pt", identity=files / "face.pt")
    assert one.notes == [
        "the perceptual term is off: no file given, and the package lpips is not installed",
        "identity: not used, config church has no such term",
    ]
    one = recipe(data, files, config="bedroom")
    new = f"discriminator: a new one for 16 x 16 pixels, RGB, no labels; {files / 'generator.pt'} has none"
    assert one.notes == [new, off] and one.D.size == 16 and one.D.b4.conv.weight.shape[0] == 16
    one = recipe(data, files, discriminator=files / "gan32.pt")
    assert "discriminator: not used, config ffhq has no such term" in one.notes


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast(precision, data, files, tmp_path):
    more = dict(precision=precision, iterations=2, perceptual=files / "lpips.pt", generator=files / "gan32.pt")
    path = run(data, files, tmp_path / "out", **more, config="church")
    assert all(np.isfinite(value) for line in log(tmp_path / "out") for value in line.values())
    states = checkpoint.load(path)["models"].values()
    assert all(value.dtype == torch.float32 for s in states for value in s.values() if value.is_floating_point())


@pytest.mark.parametrize("padding", ["shared", "projection"])
def test_other_padding(padding, data, files, tmp_path):
    path = run(data, files, tmp_path / "out", iterations=1, batch=2, padding=padding, pad_layers=3)
    encoder = load_trained_encoder(path, make_generator())
    assert encoder.padding == padding
    assert [p is not None for p in encoder(torch.zeros(1, 3, 32, 32))[1]] == [True, True, False, True, False, True]


def test_no_padding_maps(data, files):
    """pSp, for a generator without a constant."""
    torch.save(make_generator(head="csg").state_dict(), files / "csg.pt")
    one = recipe(data, files, generator=files / "csg.pt", padding="none", batch=2)
    before = one.encoder.latent_heads[0].linear.weight.detach().clone()
    one.step(0, next(one.batches(0)))
    assert not torch.equal(one.encoder.latent_heads[0].linear.weight, before)
    assert one.extra_state()["encoder_settings"].items() >= dict(padding=None, width=64, num_ws=6).items()


def test_it_begins_with_a_given_backbone(data, files, tmp_path):
    face = torch.load(files / "face.pt")
    wide = Generator(16, z_dim=16, w_dim=16, channel_max=64, mapping_layers=1)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    one = recipe(data, files, generator=tmp_path / "wide.pt", backbone=files / "face.pt")
    assert torch.equal(one.encoder.backbone_stages[3][2].res_layer[1].weight, face["body.23.res_layer.1.weight"])
    with pytest.raises(
        CheckpointError, match="^backbone: state: does not fit into the backbone: input_layer.0.weight: "
    ):
        recipe(data, files, backbone=files / "face.pt")


def test_it_inverts_a_run_of_mspie_and_takes_its_discriminator(data, files, tmp_path):
    made = MSPIESettings(
        data=data, out=tmp_path / "gan", config="a", size=8, channel_max=16, batch=2, iterations=1
    )  # fmt: skip
    gan = train(MSPIE, made, quiet=True)
    one = recipe(data, files, generator=gan, config="church", batch=2)
    assert_equal(one.D.state_dict(), checkpoint.load(gan)["models"]["discriminator"])
    assert one.side == 8 and not any("discriminator" in note for note in one.notes)
    one.step(0, next(one.batches(0)))
    with pytest.raises(ValueError, match="^generator: expected one with a constant of 4 x 4 pixels and zero padding"):
        gan = train(MSPIE, MSPIESettings(**vars(made) | {"config": "f", "out": tmp_path / "spe"}), quiet=True)
        recipe(data, files, generator=gan)


def test_the_command(data, files, tmp_path, capsys):
    arguments = ["train", "padinv", "--data", str(data), "--out", str(tmp_path / "out"), "--iterations", "1"]
    arguments += ["--size", "32", "--batch", "2"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == (
        "posgan-fast train: generator: expected a file with a StyleGAN2 generator\n"
    )  # fmt: skip
    assert cli.main([*arguments, "--generator", str(files / "generator.pt"), "--padding", "shared"]) == 0
    assert "note: the identity term is off: no file given" in capsys.readouterr().out
    assert cli.main(["train", "padinv", "--out", str(tmp_path / "out"), "--resume", "--iterations", "2"]) == 0


def test_two_processes_average_gradients_and_running_statistics(data, files, tmp_path):
    """The first moments of Adam after one iteration: a tenth of the mean of both gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [
        sys.executable, "-m", "posgan_fast", "train", "padinv", "--generator", str(files / "gan16.pt"), "--data",
        str(data), "--out", str(tmp_path / "two"), "--size", "32", "--batch", "2", "--iterations", "1", "--quiet",
    ]  # fmt: skip
    environment = os.environ | common | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, env=environment | {"RANK": rank}) for rank in "01"]
    assert [process.wait(120) for process in processes] == [0, 0]
    content = checkpoint.load(tmp_path / "two" / "checkpoint.pt")
    assert content["processes"] == 2

    moments, means = [], []
    for rank in range(2):
        one = recipe(data, files, generator=files / "gan16.pt")
        x = images.to_float(next(one.batches(0)))[rank::2]
        one.encoder_loss(x)[0].backward()
        moments.append([p.grad for p in one.encoder.parameters()])
        means.append(one.encoder.backbone_stages[1][0].res_layer[0].running_mean)
    state = content["optimizers"]["encoder"]["state"]
    unused = [k for k, grad in enumerate(moments[0]) if grad is None]  # six latents need no finest features
    assert len(state) > 200 and len(unused) == 2 and not any(k in state for k in unused)
    for k, averages in state.items():
        a, b = moments[0][k], moments[1][k]
        mean = averages["exp_avg"]
        torch.testing.assert_close(mean, 0.1 * (a + b) / 2, rtol=1e-3, atol=1e-6)
    mean = content["models"]["encoder"]["backbone_stages.1.0.res_layer.0.running_mean"]
    torch.testing.assert_close(mean, (means[0] + means[1]) / 2)


# Refusals

BAD = [
    (dict(generator=""), ValueError, "^generator: expected a file with a StyleGAN2 generator$"),
    (dict(generator="/no/such"), FileNotFoundError, "^generator: no such file: /no/such$"),
    (dict(generator="{files}/lpips.pt"), CheckpointError, "^generator: state: no StyleGAN2 generator of"),
    (dict(generator="{files}/gan16.pt", config="church", discriminator="{files}/gan32.pt"), ValueError,
     "^discriminator: expected one for 16 x 16 pixels, RGB, no labels, got one for 32 x 32 pixels$"),
    (dict(config="church", discriminator="{files}/lpips.pt"), CheckpointError,
     "^discriminator: expected one of StyleGAN2 in .*lpips.pt, got none$"),
    (dict(config="church", discriminator="/no/such"), FileNotFoundError, "^discriminator: no such file: /no/such$"),
    (dict(config="church", batch=6), ValueError, "^batch: expected up to 4 or a multiple of it, got 6$"),
    (dict(config="cars"), ValueError, "^config: expected one of .*'paper-church', 'paper-bedroom'.*, got 'cars'$"),
    (dict(size=48), ValueError, "^size: expected a power of two, got 48$"),
    (dict(size=16), ValueError, "^size: expected an int >= 32, got 16$"),
    (dict(padding="zeros"), ValueError, "^padding: expected one of .*'projection', 'none'.*, got 'zeros'$"),
    (dict(pad_layers=4), ValueError, "^pad_layers: expected at most 3 for a generator of 16 pixels, got 4$"),
    (dict(pad_layers=2, padding="none"), ValueError, "^pad_layers: expected 0 without padding maps, got 2$"),
    (dict(latents=5), ValueError, "^latents: expected at least the generator's 6, got 5$"),
    (dict(depth=18), ValueError, "^depth: expected one of 50, 100, 152, got 18$"),
    (dict(perceptual="{files}/lpips.pt"), ValueError, "^perceptual: expected no file for images of 16 pixels, less"),
    (dict(generator="{files}/gan32.pt", perceptual="{files}/face.pt"), CheckpointError,
     "^perceptual: .*face.pt: does not fit into LPIPS: features.0.weight is missing; .* and 11 more$"),
    (dict(identity="{files}/lpips.pt"), CheckpointError, "^identity: .*expected ArcFace's IR-SE-50"),
    (dict(backbone="{files}/lpips.pt"), CheckpointError, "^backbone: "),
    (dict(backbone="/no/such"), FileNotFoundError, "^backbone: no such file: /no/such$"),
    (dict(data=""), ValueError, "^data: expected a folder, a zip archive or a picture$"),
    (dict(learning_rate=2.0), ValueError, "^learning_rate: expected a number above 0 and up to 1, got 2.0$"),
    (dict(generator=3), TypeError, "^generator: expected a str, got int$"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, error, message", BAD)
def test_refusals(arguments, error, message, data, files, tmp_path):
    given = {k: v.replace("{files}", str(files)) if isinstance(v, str) else v for k, v in arguments.items()}
    with pytest.raises(error, match=message):
        run(data, files, tmp_path / "out", **given)
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_refusals_of_generators(data, files, tmp_path):
    path = tmp_path / "g.pt"
    for more, message in (
        (dict(head="csg"), "^generator: expected one with a constant of 4 x 4 pixels and zero padding$"),
        (dict(no_pad=True), "^generator: expected one with a constant of 4 x 4 pixels and zero padding$"),
        (dict(img_channels=1), r"^generator: expected one of square RGB images, got 1 channels of \(16, 16\) pixels$"),
        (dict(head_size=(4, 8)), r"^generator: expected one of square RGB .*got 3 channels of \(16, 32\) pixels$"),
    ):
        torch.save(make_generator(**more).state_dict(), path)
        with pytest.raises(ValueError, match=message):
            recipe(data, files, generator=path)
    singan = SinGANSettings(
        data=data / "0.png", out=tmp_path / "singan", min_size=16, max_size=30, iterations_per_stage=1, width=4
    )  # fmt: skip
    gan = train(SinGAN, singan, quiet=True)
    with pytest.raises(CheckpointError, match="^generator: expected a StyleGAN2, got a SinGAN in .*checkpoint.pt$"):
        recipe(data, files, generator=gan)
