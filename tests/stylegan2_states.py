"""Small state dictionaries of StyleGAN2 in the names of every family, written out from the layer numbers."""

from __future__ import annotations

import torch

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
CHANNELS = {4: 8, 8: 8, 16: 8, 32: 4}  # min(128 // r, 8)
SIZE, W, Z, LAYERS, LABELS = 32, 6, 5, 3, 7
SETTINGS = {"size": SIZE, "w_dim": W, "channel_multiplier": 128 / 16384, "channel_max": 8}

State = dict[str, torch.Tensor]


def generator(head: str = "constant", no_pad: bool = False, architecture: str = "skip", c_dim: int = 0) -> State:
    """In NVlabs' names, everything random but the filters."""
    rand = torch.Generator().manual_seed(1)
    border = 2 if no_pad else 0
    state: State = {}

    def put(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape, generator=rand)

    z = Z + (W if c_dim else 0)
    if c_dim:
        put("mapping.embed.weight", W, c_dim)
        put("mapping.embed.bias", W)
    for j in range(LAYERS):
        put(f"mapping.fc{j}.weight", W, W if j else z)
        put(f"mapping.fc{j}.bias", W)
    put("mapping.w_avg", W)
    if head == "constant":
        put("synthesis.b4.const", CHANNELS[4], 4 + border, 4 + border)
    for r, out in CHANNELS.items():
        block = f"synthesis.b{r}"
        state[f"{block}.resample_filter"] = FIR.clone()
        for conv in ("conv0", "conv1") if r > 4 else ("conv1",):
            into = CHANNELS[r // 2] if conv == "conv0" else 2 if (r, head) == (4, "csg") else out
            side = r + (border if conv == "conv0" else 0)
            put(f"{block}.{conv}.weight", out, into, 3, 3)
            put(f"{block}.{conv}.bias", out)
            put(f"{block}.{conv}.affine.weight", into, W)
            put(f"{block}.{conv}.affine.bias", into)
            put(f"{block}.{conv}.noise_const", side, side)
            put(f"{block}.{conv}.noise_strength")
            state[f"{block}.{conv}.resample_filter"] = FIR.clone()
        if architecture == "skip" or r == SIZE:
            put(f"{block}.torgb.weight", 3, out, 1, 1)
            put(f"{block}.torgb.bias", 3)
            put(f"{block}.torgb.affine.weight", out, W)
            put(f"{block}.torgb.affine.bias", out)
        if architecture == "resnet" and r > 4:
            put(f"{block}.skip.weight", out, CHANNELS[r // 2], 1, 1)
            state[f"{block}.skip.resample_filter"] = FIR.clone()
    return state


def discriminator(architecture: str = "resnet", pooled: bool = False, c_dim: int = 0) -> State:
    rand = torch.Generator().manual_seed(2)
    state: State = {}

    def put(name: str, out: int, *rest: int, bias: bool = True, fir: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn((out, *rest), generator=rand)
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=rand)
        if fir:
            state[f"{name}.resample_filter"] = FIR.clone()

    for r in (32, 16, 8):
        state[f"b{r}.resample_filter"] = FIR.clone()
        if r == SIZE or architecture == "skip":
            put(f"b{r}.fromrgb", CHANNELS[r], 3, 1, 1)
        put(f"b{r}.conv0", CHANNELS[r], CHANNELS[r], 3, 3)
        put(f"b{r}.conv1", CHANNELS[r // 2], CHANNELS[r], 3, 3)
        if architecture == "resnet":
            put(f"b{r}.skip", CHANNELS[r // 2], CHANNELS[r], 1, 1, bias=False)
    if architecture == "skip":
        put("b4.fromrgb", 8, 3, 1, 1)
    put("b4.conv", 8, 9, 3, 3)
    put("b4.fc", 8, 8 * (4 if pooled else 16), fir=False)
    put("b4.out", 8 if c_dim else 1, 8, fir=False)
    if c_dim:
        put("mapping.embed", 8, c_dim, fir=False)
        for j in range(LAYERS):
            put(f"mapping.fc{j}", 8, 8, fir=False)
    return state


def in_family(state: State, family: str, *, resized: bool = False) -> State:
    """A generator of ``generator()`` as the family stores it; ``resized``: MS-PIE, without filters for layers."""
    if family == "nvlabs":
        return dict(state)
    out: State = {}
    for name, value in state.items():
        module, *rest = name.split(".")
        if module == "mapping":
            _mapping(out, family, rest, value)
            continue
        block, rest = rest[0], rest[1:]
        b = int(block[1:]).bit_length() - 3
        if rest == ["const"]:
            const = {"rosinality": "input.input", "mmgeneration": "constant_input.input"}
            out[const.get(family, "synthesis.early_layer.const")] = value[None]
        elif rest == ["resample_filter"]:
            if b and family in ("rosinality", "mmgeneration"):
                out[f"to_rgbs.{b - 1}.upsample.kernel"] = value * 4
            elif family == "hammer":
                out["synthesis.filter"] = value
            elif family == "genforce":
                out["synthesis.upsample.kernel"] = value[None, None] * 4
        elif rest[0] == "torgb":
            _layer(out, family, f"to_rgbs.{b - 1}" if b else "to_rgb1", f"synthesis.output{b}", rest[1:], value, -1)
        elif rest[0] == "skip":
            out[f"synthesis.residual{b}.{'weight' if rest[1] == 'weight' else 'filter'}"] = value
        else:
            n = 2 * b - 1 if rest[0] == "conv0" else 2 * b
            up = rest[0] == "conv0" and not resized
            if rest[1] == "resample_filter" and not up:
                continue
            _layer(out, family, f"convs.{n - 1}" if n else "conv1", f"synthesis.layer{n}", rest[1:], value, n)
    spe = "synthesis.b4.const" not in state and state["synthesis.b4.conv1.weight"].shape[1] != 2
    if family == "mmgeneration" and spe:
        out["head_pos_enc._float_tensor"] = torch.zeros(1)
    return out


def discriminator_in_family(state: State, family: str) -> State:
    if family == "nvlabs":
        return dict(state)
    out: State = {}
    for name, value in state.items():
        *module, part = name.split(".")
        if module[0] == "mapping":
            out[f"{module[1].replace('embed', 'embedding').replace('fc', 'mapping')}.{part}"] = value
            continue
        r = int(module[0][1:])
        d = 5 - (r.bit_length() - 1)  # 0 for the first block of 32 pixels
        kind = module[1] if len(module) > 1 else ""
        if not kind:
            continue
        kernel = part == "resample_filter"
        if kernel and kind not in ("conv1", "skip"):
            continue
        if family in ("hammer", "genforce"):
            skip = "residual" if family == "hammer" else "skip_layer"
            last = "output" if family == "hammer" else f"layer{2 * d + 2}"
            layer = {"fromrgb": f"input{d}", "conv0": f"layer{2 * d}", "conv1": f"layer{2 * d + 1}"}
            layer |= {"skip": f"{skip}{d}", "conv": f"layer{2 * d}", "fc": f"layer{2 * d + 1}", "out": last}
            if kernel:
                part = "filter" if family == "hammer" else "filter.kernel"
                value = value if family == "hammer" else value[None, None]
            out[f"{layer[kind]}.{part}"] = value
            continue
        linear = kind in ("fc", "out")
        layer = {"fromrgb": "convs.0", "conv0": f"convs.{d + 1}.conv1", "conv1": f"convs.{d + 1}.conv2"}
        layer |= {"skip": f"convs.{d + 1}.skip", "conv": "final_conv", "fc": "final_linear.0", "out": "final_linear.1"}
        first = 1 if kind in ("conv1", "skip") else 0
        weight = "weight" if family == "rosinality" else "linear.weight_orig" if linear else "conv.weight_orig"
        index = "" if linear else f"{0 if kernel else first + (part == 'bias')}."
        out[f"{layer[kind]}.{index}{'kernel' if kernel else 'bias' if part == 'bias' else weight}"] = value
    return out


def _mapping(out: State, family: str, rest: list[str], value: torch.Tensor) -> None:
    if rest == ["w_avg"]:
        name = {"rosinality": "latent_avg", "hammer": "w_avg", "genforce": "truncation.w_avg"}.get(family)
        out |= {name: value} if name else {}
    elif rest[0] == "embed":
        out[f"mapping.embedding.{rest[1]}"] = value
    else:
        j = int(rest[0][2:])
        layer = {"rosinality": f"style.{j + 1}", "mmgeneration": f"style_mapping.{j + 1}"}
        weight = "linear.weight_orig" if (family, rest[1]) == ("mmgeneration", "weight") else rest[1]
        out[f"{layer.get(family, f'mapping.dense{j}')}.{weight}"] = value


def _layer(out: State, family: str, ros: str, hammer: str, rest: list[str], value: torch.Tensor, n: int) -> None:
    part = ".".join(rest)
    if family in ("hammer", "genforce"):
        if part == "noise_const":
            value = value[None, None]
        if family == "genforce" and part == "affine.bias":
            value = value - 1
        if family == "genforce" and part == "weight" and n % 2 == 1 and n > 0:
            value = value.flip(-1, -2)
        if part == "resample_filter":
            value = value if family == "hammer" else value[None, None] * 4
            part = "filter" if family == "hammer" else "filter.kernel"
        out[f"{hammer}.{part.replace('affine', 'style').replace('noise_const', 'noise')}"] = value
        return
    mmg = family == "mmgeneration"
    if part == "noise_const":
        out[f"injected_noise_{n}" if mmg else f"noises.noise_{n}"] = value[None, None]
        return
    names = {
        "weight": ("conv.weight", "conv.weight_orig", lambda v: v[None]),
        "bias": ("activate.bias",) * 2 + (lambda v: v,),
        "affine.weight": ("conv.modulation.weight", "conv.style_modulation.linear.weight_orig", lambda v: v),
        "affine.bias": ("conv.modulation.bias", "conv.style_modulation.bias", lambda v: v),
        "noise_strength": ("noise.weight", "noise_injector.weight", lambda v: v[None]),
        "resample_filter": ("conv.blur.kernel",) * 2 + (lambda v: v * 4,),
    }
    if n < 0:
        names["bias"] = ("bias", "bias", lambda v: v[None, :, None, None])
    out[f"{ros}.{names[part][mmg]}"] = names[part][2](value)
