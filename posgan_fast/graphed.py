"""CUDA graphs: the inference of a network as one launch."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from .ops.common import checks

_DEVICE = "cuda"


def graphed(network: Callable[..., Any], /, *batch: Any, warmups: int = 3, **arguments: Any) -> Graphed:
    """Capture the inference of ``network`` in a CUDA graph, so that it takes one launch instead of one for each kernel.

    ``run = graphed(network, *batch, **arguments)`` makes the graph, ``result = run(*other_batch)`` runs it:

    - A call takes as many tensors as ``batch`` has, in their shapes and dtypes and on their device, and copies them
      into the graph's own inputs. Its result is a copy, which no later call changes. With ``copy=False`` it is the
      graph's own memory, which the next call writes over.
    - ``arguments``, the backend and the autocast that are on, and all else that Python decides stay as they were
      captured.
    - The graph reads parameters, buffers and the tensors in ``arguments`` where they lie. What is written into them in
      place, by ``load_state_dict`` or an optimiser for example, counts from the next call on. Tensors that replace
      them, as by ``load_state_dict(assign=True)`` or by converting the network, do not: the graph keeps the old ones.
    - Random numbers of torch's default generator, those of ``noise_mode="random"`` among them, are new in each call.
    - Results have no gradients. Calls of one graph from several streams or threads at a time would mix their inputs.
    - The graph holds the network, and memory of its own for all features of a pass, until it is deleted.

    The network runs ``warmups`` times ahead of the capture, and once more while torch refuses whatever waits for the
    GPU. Meanwhile other threads must not use the GPU.

    Args:
        network: a module in evaluation mode, with its parameters and buffers on one CUDA device; or a function, whose
            parameters are not looked at.
        batch: example tensors, the positional arguments of ``network``; or, for :class:`posgan_fast.models.Generator`,
            a number N, which stands for latents [N, z_dim] and, where the network has labels, for labels [N, c_dim].
        warmups: number of passes in which kernels are compiled, loaded and chosen; at least 1.
        arguments: keyword arguments of ``network``.

    Returns:
        A function of tensors like ``batch``, with the keyword argument ``copy``. Its result has the structure of the
        network's: a tensor, or tuples, lists and dicts of tensors.

    Raises:
        TypeError: ``network`` cannot be called, an example or a given input is no tensor or has another dtype, or the
            result holds something else than tensors.
        ValueError: a tensor is not on the CUDA device of the others, requires gradients while they are recorded, or has
            another shape than its example; a call has another number of tensors; or the network is in training mode.
        RuntimeError: the network does what no graph can hold, or another capture is under way.

    Example:
        >>> import posgan_fast
        >>> from posgan_fast.models import Generator
        >>> generator = Generator(32, z_dim=16, w_dim=16, channel_max=8, mapping_layers=2).eval()
        >>> if torch.cuda.is_available():
        ...     run = posgan_fast.graphed(generator.cuda(), 4, truncation_psi=0.7)
        ...     images = run(torch.randn(4, 16, device="cuda"))  # [4, 3, 32, 32]
    """
    if not callable(network):
        raise TypeError(f"network: expected a module or a function, got {type(network).__name__}")
    warmups = checks.integer(warmups, "warmups", minimum=1)
    _check_mode(network)
    if batch and not isinstance(batch[0], torch.Tensor):
        batch = _examples(network, *batch)
    named = {f"batch[{i}]": _checked(value, f"batch[{i}]") for i, value in enumerate(batch)}
    for argument, value in arguments.items():
        for i, leaf in enumerate(tree_leaves(value)):
            if isinstance(leaf, torch.Tensor):
                name = argument if leaf is value else f"{argument}[{i}]"
                named[name] = _checked(leaf, name)
    device = _common_device({**_state(network), **named})
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("network: expected no capture under way on the current stream, got a call inside of one")
    return Graphed(network, batch, arguments, device, warmups)


class Graphed:
    """A captured network; :func:`graphed` makes it and describes its calls."""

    def __init__(
        self,
        network: Callable[..., Any],
        batch: tuple[torch.Tensor, ...],
        arguments: dict[str, Any],
        device: torch.device,
        warmups: int,
    ) -> None:
        self._device = device
        with _inference_on(device):
            self._inputs = tuple(value.detach().clone() for value in batch)
            run = functools.partial(network, *self._inputs, **arguments)
            self._graph, self._result = _captured(run, device, warmups)
        given = [leaf.detach() for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        self._read = run, (*_state(network).values(), *given)  # the memory that the graph reads

    def __call__(self, *batch: torch.Tensor, copy: bool = True) -> Any:
        """Run the graph on tensors like the examples, as :func:`graphed` describes."""
        checks.flag(copy, "copy")
        if len(batch) != len(self._inputs):
            raise ValueError(f"batch: expected {len(self._inputs)} tensors, as captured, got {len(batch)}")
        for i, (value, own) in enumerate(zip(batch, self._inputs, strict=True)):
            _check_like(_checked(value, f"batch[{i}]"), own, f"batch[{i}]")
        with torch.no_grad(), torch.cuda.device(self._device):
            for value, own in zip(batch, self._inputs, strict=True):
                own.copy_(value)
            self._graph.replay()
            return tree_map_only(torch.Tensor, torch.clone, self._result) if copy else self._result


def _captured(run: Callable[[], Any], device: torch.device, warmups: int) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Warm up, capture, and return the graph and the result that its replays write."""
    graph = torch.cuda.CUDAGraph()
    here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):  # puts the stream back, which a capture that fails does not
            for _ in range(warmups):
                _check_result(run(), device)
            with _explained(), _refusing_waits():
                run()
            capture = torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local")
            with _explained(), _random_numbers_kept(device), capture:
                result = run()
    finally:
        here.wait_stream(side)
    return graph, result


@contextlib.contextmanager
def _inference_on(device: torch.device) -> Iterator[None]:
    """Make normal tensors, without gradients, on ``device``, and none that autocast keeps beyond its context."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what a graph cannot hold where torch refuses to capture."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            "network: expected one that only queues work on the GPU, as a CUDA graph holds it, got one that waits for "
            "the GPU or works elsewhere (.item(), .cpu(), branches and shapes that depend on values, tensors from the "
            f"CPU); torch says: {str(error).partition(chr(10))[0]}"
        ) from error


@contextlib.contextmanager
def _refusing_waits() -> Iterator[None]:
    """Make torch raise an error where it waits for the GPU, ahead of a capture that this would spoil."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # of a prototype
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Put torch's default generator back where a capture fails, which would leave it waiting for the capture's end."""
    generator = torch.cuda.default_generators[device.index]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise


def _check_mode(network: Any) -> None:
    if isinstance(network, torch.nn.Module):
        for name, module in network.named_modules(prefix="network"):
            if module.training:
                raise ValueError(f"network: expected evaluation mode, network.eval(), got {name} in training mode")


def _examples(network: Any, number: Any, *more: Any) -> tuple[torch.Tensor, ...]:
    """Make the inputs that a number of samples stands for; nothing may follow it."""
    from .models import Generator

    inner = getattr(network, "_orig_mod", network)  # look inside a wrapper of torch.compile
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"batch[0]: expected a torch.Tensor, or a number of samples, got {type(number).__name__}")
    if not isinstance(inner, Generator):
        raise TypeError(f"batch[0]: expected a torch.Tensor, as network is no Generator, got {number}")
    if more:
        raise TypeError(
            "batch[1]: expected no input beside batch[0], a number of samples, which stands for latents and labels,"
            f" got {type(more[0]).__name__}"
        )
    number = checks.integer(number, "batch[0]", minimum=1)
    like = inner.mapping.fc0.weight
    with torch.inference_mode(False):
        sizes = (inner.z_dim, inner.c_dim) if inner.c_dim else (inner.z_dim,)
        return tuple(torch.zeros(number, size, dtype=like.dtype, device=like.device) for size in sizes)


def _checked(value: Any, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected no requires_grad, since a graph has no gradients; pass {name}.detach()")
    return value


def _check_like(value: torch.Tensor, own: torch.Tensor, name: str) -> None:
    checks.same_device(value, name, own, like="the graph")
    if value.dtype != own.dtype:
        raise TypeError(f"{name}: expected dtype {own.dtype}, as captured, got {value.dtype}")
    if value.shape != own.shape:
        raise ValueError(f"{name}: expected shape {tuple(own.shape)}, as captured, got {tuple(value.shape)}")


def _check_result(result: Any, device: torch.device) -> None:
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.Tensor):
            if leaf.device != device:
                raise ValueError(f"network: expected results on {device}, got one on {leaf.device}")
        elif leaf is not None:
            kind = type(leaf).__name__
            raise TypeError(f"network: expected a result of tensors in tuples, lists and dicts, got a {kind} in it")


def _state(network: Any) -> dict[str, torch.Tensor]:
    """Name the memory of parameters and buffers; a parameter whose ``.data`` is replaced leaves these tensors alone."""
    if not isinstance(network, torch.nn.Module):
        return {}
    state = (*network.named_parameters("network"), *network.named_buffers("network"))
    return {name: value.detach() for name, value in state}


def _common_device(named: dict[str, torch.Tensor]) -> torch.device:
    """Return the CUDA device of all tensors, or tell which tensor is where."""
    places: dict[torch.device, str] = {}
    for name, value in named.items():
        places.setdefault(value.device, name)
    if len(places) == 1 and next(iter(places)).type == _DEVICE:
        return next(iter(places))
    found = ", ".join(f"{name} on {device}" for device, name in places.items()) or "no tensor at all"
    hint = "" if torch.cuda.is_available() else "; torch finds no CUDA device here"
    raise ValueError(f"network and batch: expected all tensors on one CUDA device, got {found}{hint}")
