"""Makes the contenders of the rows that :mod:`benchmarks.networks_plan` plans, with the same weights."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import network_calls, network_peers
from .gpu_timing import Clock, Timed
from .network_calls import Layer, dtype_of, on_reference
from .network_report import FLOOR, GRAPH, NVLABS, OURS, REFERENCE, ZEROS
from .networks_plan import FULL, Case


@dataclass
class Contender:
    """A call, and what makes it ready to be timed."""

    call: Callable[[], Any]
    prepare: Callable[[Clock], Timed]


@dataclass
class Work:
    """The contenders of a row, made one by one, since the memory may not hold all of them.

    Args:
        contenders: makers of contenders by name.
        base: returns what the results are compared with, of the first sample; None: nothing.
        counted: prepares our call for a device, whose kernels are counted on the device meta; None: nothing to count.
        grad: autograd records the calls.
        compile_seconds: the time of each compilation, by contender, once its contender is prepared.
    """

    contenders: dict[str, Callable[[], Contender]]
    base: Callable[[], torch.Tensor] | None = None
    counted: Callable[[torch.device], Callable[[], Any]] | None = None
    grad: bool = False
    compile_seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Peers:
    """The projects beside ours: checkouts by name, and the module of NVlabs' networks."""

    paths: dict[str, Path] = field(default_factory=dict)
    nvlabs: Any = None


def work(case: Case, device: torch.device, peers: Peers, dry_run: bool = False) -> Work:
    """Make the contenders of a case; ``dry_run`` compiles without a compiler."""
    if case.what == "compiled":
        return _compiled(case, device, peers, dry_run)
    makers = {
        "layer": _layer, "generator": _generator, "launches": _generator, "training": _training,
        "backward": _backward, "discriminator": _discriminator, "padding": _padding,
    }  # fmt: skip
    return makers[case.what](case, device, peers)


def _layer(case: Case, device: torch.device, peers: Peers) -> Work:
    spec, dtype = Layer(case.kind, case.size), dtype_of(case.precision)
    layer = spec.module(device)
    x, w = spec.inputs(case.batch, dtype, device)
    traffic = (x.numel() + case.batch * spec.outer * case.size**2) * dtype.itemsize

    def contender(module: Any, x: torch.Tensor, **arguments: Any) -> Contender:
        run = lambda x: module(x, w, **arguments)  # noqa: E731
        return Contender(lambda: run(x), lambda clock: clock.rotating(run, x, traffic))

    def counted(device: torch.device) -> Callable[[], Any]:
        return functools.partial(spec.module(device), *spec.inputs(case.batch, dtype, device))

    made = {OURS: lambda: contender(layer, x)}
    if peers.nvlabs is not None and case.precision in network_calls.NVLABS_PRECISIONS:
        peer = network_peers.nvlabs_layer(peers.nvlabs, spec, layer)
        arguments: dict[str, Any] = {} if case.kind == "torgb" else {"noise_mode": "const"}
        # as a block of its network decides in inference
        is_ada = peers.nvlabs.__name__ == "training.networks"
        arguments["fused_modconv"] = not is_ada or dtype == torch.float32 or case.batch == 1
        made[NVLABS] = lambda: contender(peer, x.contiguous(), **arguments)
    return Work(made, lambda: on_reference(lambda: layer(x[:1].float(), w[:1])), counted)


def _generator(case: Case, device: torch.device, peers: Peers) -> Work:
    g, peer = network_peers.pair(case.size, device, peers.nvlabs, "Generator", case.precision)
    ws = _latents(g, case.batch, device)
    made = {OURS: lambda: _synthesis(g.synthesis, ws)}
    if peer is not None:
        made[NVLABS] = lambda: _synthesis(peer.synthesis, ws)
    if case.precision in FULL and case.batch == 1:
        made[REFERENCE] = lambda: _plain(lambda: on_reference(lambda: g.synthesis(ws, noise_mode="const")))
        made[FLOOR] = lambda: _plain(network_calls.convolutions_alone(case.size, case.batch, "float32", device))

    def base() -> torch.Tensor:
        return on_reference(lambda: g.synthesis(ws[:1], noise_mode="const", force_fp32=True))

    def counted(device: torch.device) -> Callable[[], Any]:
        g = network_calls.generator(case.size, device, **network_calls.settings(case.precision))
        return lambda: g.synthesis(torch.empty(case.batch, g.num_ws, 512, device=device), noise_mode="const")

    return Work(made, base, counted)


def _padding(case: Case, device: torch.device, peers: Peers) -> Work:
    """PadInv's padding maps, and zero padding."""
    g, _ = network_peers.pair(case.size, device, None, "Generator", case.precision)
    ws, maps = _latents(g, 1, device), network_calls.padding_maps(device)
    return Work({OURS: lambda: _synthesis(g.synthesis, ws, pad_maps=maps), ZEROS: lambda: _synthesis(g.synthesis, ws)})


def _discriminator(case: Case, device: torch.device, peers: Peers) -> Work:
    d, peer = network_peers.pair(case.size, device, peers.nvlabs, "Discriminator", case.precision)
    x = torch.randn(case.batch, 3, case.size, case.size, device=device)
    made = {OURS: lambda: Contender(lambda: d(x), lambda clock: clock.network(d, x))}
    if peer is not None:
        made[NVLABS] = lambda: Contender(lambda: peer(x, None), lambda clock: clock.network(peer, x, c=None))

    def counted(device: torch.device) -> Callable[[], Any]:
        d = network_calls.discriminator(case.size, device, **network_calls.settings(case.precision))
        return lambda: d(torch.empty(x.shape, device=device))

    return Work(made, lambda: on_reference(lambda: d(x, force_fp32=True))[:1], counted)


def _training(case: Case, device: torch.device, peers: Peers) -> Work:
    """Losses and gradients of a step, or of both, of networks in training mode, which draw noise."""
    g, peer_g, d, peer_d = _in_training(case, device, peers)
    z, real = network_calls.training_inputs(device, case.size, case.batch)

    def contender(g: Any, d: Any, judge: Any, label: tuple[Any, ...] = ()) -> Contender:
        steps = {
            "generator step": lambda: network_calls.generator_step(g, judge, z, label),
            "discriminator step": lambda: network_calls.discriminator_step(g, d, judge, z, real, label),
        }
        return _plain(steps.get(case.kind, lambda: [step() for step in steps.values()]))

    made = {OURS: lambda: contender(g, d, d)}
    if peer_g is not None:
        made[NVLABS] = lambda: contender(peer_g, peer_d, lambda x: peer_d(x, None), (z.new_zeros(case.batch, 0),))
    return Work(made, grad=True)


def _backward(case: Case, device: torch.device, peers: Peers) -> Work:
    """The backward pass alone: the gradients of the parameters and of the input."""
    g, peer_g, d, peer_d = _in_training(case, device, peers)
    if case.kind == "generator":
        x = _latents(g, case.batch, device)
        forwards = {OURS: g.synthesis, NVLABS: peer_g and peer_g.synthesis}
    else:
        x = torch.randn(case.batch, 3, case.size, case.size, device=device)
        forwards = {OURS: d, NVLABS: peer_d}

    def contender(module: Any, *more: Any) -> Contender:
        wanted = [x.detach().requires_grad_(), *module.parameters()]
        y = module(wanted[0], *more)
        dy = torch.randn_like(y)
        return _plain(lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True, allow_unused=True))

    label = {NVLABS: (None,)} if case.kind == "discriminator" else {}
    given = {name: module for name, module in forwards.items() if module is not None}
    made = {n: functools.partial(contender, module, *label.get(n, ())) for n, module in given.items()}
    return Work(dict(made), grad=True)


def _compiled(case: Case, device: torch.device, peers: Peers, dry_run: bool) -> Work:
    """The generator of a peer as it is and compiled, beside ours."""
    g, peer = network_peers.pair(case.size, device, peers.nvlabs, "Generator", case.precision)
    ws = _latents(g, case.batch, device)
    name = f"{case.peer}, compiled" + (GRAPH if case.kind == "max-autotune" else "")  # which replays graphs
    torch._dynamo.config.recompile_limit = 64  # every block has shapes of its own
    if case.peer == NVLABS:
        module, call = peer.synthesis, lambda module: module(ws, noise_mode="const")
    else:
        module = network_peers.rosinality_generator(peers.paths[case.peer], case.size, device)
        call = lambda module: module([ws], input_is_latent=True, randomize_noise=False)[0]  # noqa: E731
    options: dict[str, Any] = {"backend": "eager"} if dry_run else {"mode": case.kind}
    compiled = torch.compile(module, dynamic=False, **options)
    made = Work({OURS: lambda: _synthesis(g.synthesis, ws), case.peer: lambda: _plain(lambda: call(module))})

    def prepare(clock: Clock) -> Timed:
        begin = time.perf_counter()
        call(compiled)
        clock.settle()
        made.compile_seconds[name] = time.perf_counter() - begin
        return clock.call(lambda: call(compiled))

    made.contenders[name] = lambda: Contender(lambda: call(compiled), prepare)
    return made


def _in_training(case: Case, device: torch.device, peers: Peers) -> list[Any]:
    """Generator and discriminator, ours and NVlabs' or None."""
    kinds = ("Generator", "Discriminator")
    networks = [n for k in kinds for n in network_peers.pair(case.size, device, peers.nvlabs, k, case.precision)]
    return [network and network.train() for network in networks]


def _synthesis(module: Any, ws: torch.Tensor, **arguments: Any) -> Contender:
    arguments["noise_mode"] = "const"
    return Contender(lambda: module(ws, **arguments), lambda clock: clock.network(module, ws, **arguments))


def _plain(call: Callable[[], Any]) -> Contender:
    return Contender(call, lambda clock: clock.call(call))


def _latents(g: Any, n: int, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        return network_calls.latents(g, n, device)
