"""The loop that all recipes share: settings, progress, log, samples, checkpoints, interruption.

A run fills its folder::

    checkpoint.pt    state after the last save; replaced as a whole, so that it is always whole
    metrics.jsonl    a JSON object of losses for each logged iteration
    samples/         grids of images, PNG
    settings.json    the settings

and the events of TensorBoard where that package is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from ..models import CheckpointError
from ..ops.common import checks
from . import checkpoint, ranks
from .images import check_outside, grid

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Settings that may differ when a run goes on: they change when it ends and what it shows, or where it runs.
_FREE = {"out", "iterations", "device", "workers", "save_every", "sample_every", "log_every", "compile", "data"}
_FREE |= {"generator"}  # of PadInv, whose fingerprint the checkpoint has
_PARTS = ("models", "optimizers", "scaler", "processes", "data")


def option(default: Any, text: str, **more: Any) -> Any:
    """Declare a setting with its description, which the command line shows."""
    return field(default=default, metadata={"help": text} | more)


@dataclass(frozen=True)
class Settings:
    """Settings of every recipe."""

    data: str = option("", "folder, zip archive or picture to train on")
    out: str = option("", "folder for checkpoint, log and samples")
    seed: int = option(0, "seed of weights, latents and order of the data")
    iterations: int = option(1000, "iterations in all", minimum=1)
    batch: int = option(8, "images of a process and iteration", minimum=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = option("float32", "float32, or autocast to bfloat16 or float16", choices=tuple(PRECISIONS))
    compile: bool = option(False, "torch.compile for the passes without penalties")
    workers: int = option(0, "processes that read pictures ahead")
    save_every: int = option(1000, "iterations between checkpoints", minimum=1)
    sample_every: int = option(500, "iterations between grids of samples", minimum=1)
    log_every: int = option(10, "iterations between lines of the log", minimum=1)

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name in ("data", "out") and isinstance(value, os.PathLike):
                object.__setattr__(self, one.name, value := os.fspath(value))
            if isinstance(one.default, bool):
                checks.flag(value, one.name)
            elif isinstance(one.default, int):
                checks.integer(value, one.name, minimum=one.metadata.get("minimum", 0), maximum=2**63 - 1)
            elif isinstance(one.default, float):
                number = checks.real(value, one.name, minimum=0)
                if not 0 < number <= 1:
                    raise ValueError(f"{one.name}: expected a number above 0 and up to 1, got {value}")
                object.__setattr__(self, one.name, number)
            elif isinstance(one.default, str):
                if not isinstance(value, str):
                    raise TypeError(f"{one.name}: expected a str, got {type(value).__name__}")
                if choices := one.metadata.get("choices"):
                    checks.choice(value, one.name, choices)


class Recipe:
    """A system that trains: its networks, its optimisers and one iteration.

    Subclasses have a ``name`` and a ``settings_type``, set ``modules`` and ``optimizers``, and define :meth:`batches`,
    :meth:`step`, :meth:`samples` and :meth:`data_digest`.

    Args:
        settings: settings of the run.
        device: device of the networks.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    modules: dict[str, torch.nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.notes: list[str] = []
        dtype = PRECISIONS[settings.precision]
        self.autocast_dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def total(self) -> int:
        """Return the number of iterations."""
        return self.settings.iterations

    def batches(self, start: int) -> Iterator[torch.Tensor | None]:
        """Yield the real images of each iteration from ``start`` on."""
        raise NotImplementedError

    def step(self, iteration: int, real: Any) -> dict[str, torch.Tensor | float]:
        """Run one iteration; return numbers for the log."""
        raise NotImplementedError

    def samples(self) -> tuple[torch.Tensor, int]:
        """Return images [N, 3, H, W] from -1 to 1 and the number of columns to show them in."""
        raise NotImplementedError

    def data_digest(self) -> str:
        """Return a hash that tells whether a run goes on with the data that it began with."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides modules and optimisers; it lies at the checkpoint's top level."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""

    def autocast(self) -> contextlib.AbstractContextManager:
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype) if dtype is not None else contextlib.nullcontext()

    def update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        """Differentiate ``loss``, average the gradients of all processes, and step."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        ranks.average_gradients(p for group in optimizer.param_groups for p in group["params"])
        self.scaler.step(optimizer)
        self.scaler.update()

    def synchronise(self, *networks: torch.nn.Module) -> None:
        """Average the buffers that each process moves by its own batch."""
        for network in networks:
            for name, buffer in network.named_buffers():
                if name.endswith(("w_avg", "running_mean", "running_var")):
                    ranks.average_(buffer)

    def state(self) -> dict[str, Any]:
        return {
            "models": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "processes": ranks.world_size(),
            "data": self.data_digest(),
            **self.extra_state(),
        }

    def load(self, content: Mapping[str, Any], path: Path) -> None:
        """Take back a checkpoint.

        Raises:
            CheckpointError: it does not fit, or is of other data or another number of processes.
        """
        missing = [part for part in _PARTS if part not in content]
        if missing:
            raise CheckpointError(f"{path}: damaged: {', '.join(missing)} missing")
        if content["processes"] != ranks.world_size():  # which draw other samples
            raise CheckpointError(f"{path}: expected {content['processes']} processes, got {ranks.world_size()}")
        if content["data"] != self.data_digest():
            raise CheckpointError(f"{path}: expected the data that the run began with, got other pictures")
        checkpoint.restore(self.load_extra_state, content, path, "state of the run")
        for name, module in self.modules.items():
            checkpoint.restore(module.load_state_dict, content["models"].get(name), path, name)
        for name, optimizer in self.optimizers.items():
            checkpoint.restore(optimizer.load_state_dict, content["optimizers"].get(name), path, f"optimizer {name}")
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])


def train(make: type[Recipe], settings: Settings, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train, and return the path of the checkpoint.

    Args:
        make: class of the recipe.
        settings: its settings.
        resume: True goes on where the checkpoint in ``settings.out`` ends; with the same settings and as many threads
            the result on the CPU is that of an uninterrupted run, bit for bit.
        quiet: True prints nothing.

    Raises:
        TypeError: settings of another recipe.
        FileNotFoundError: no data, or no checkpoint to resume from.
        ValueError: a wrong setting, no readable picture, or another run in the folder.
        CheckpointError: the checkpoint is damaged, or of another run.
        OSError: a file cannot be written; the last checkpoint is whole.
        KeyboardInterrupt: the run was interrupted; its argument is the path that it has been saved in.
    """
    if not isinstance(settings, make.settings_type):
        raise TypeError(f"settings: expected {make.settings_type.__name__}, got {type(settings).__name__}")
    if not settings.out:
        raise ValueError("out: expected a folder for the results")
    device = ranks.choose_device(settings.device)
    with ranks.joined(device):
        folder = Path(settings.out)
        path = folder / checkpoint.NAME
        content = _previous(path, make.name, settings, resume)
        recipe = make(settings, device)
        start = 0
        if content is not None:
            recipe.load(content, path)
            start = content["iteration"]
        first = ranks.rank() == 0
        say = (lambda text: tqdm.write(text)) if first and not quiet else (lambda text: None)
        for note in recipe.notes:
            say(f"note: {note}")
        with _Log(folder, start, settings, enabled=first) as log, _Interruption() as interruption:
            _iterate(recipe, start, path, log, interruption, quiet or not first)
        if interruption.requested:
            raise KeyboardInterrupt(str(path))
    return path


def _iterate(recipe: Recipe, start: int, path: Path, log: _Log, interruption: _Interruption, quiet: bool) -> None:
    settings, end = recipe.settings, recipe.total()
    first = ranks.rank() == 0
    batches = recipe.batches(start)
    with tqdm(total=end, initial=start, disable=quiet, desc=recipe.name, dynamic_ncols=True) as bar:
        for iteration in range(start, end):
            losses = recipe.step(iteration, next(batches))
            done = iteration + 1
            stop = interruption.agreed()
            if done % settings.log_every == 0 or done == end or stop:
                numbers = {name: float(value) for name, value in losses.items()}
                log.write(done, numbers)
                wrong = [name for name, value in numbers.items() if not math.isfinite(value)]
                if wrong:
                    raise ValueError(f"{wrong[0]}: {numbers[wrong[0]]} at iteration {done}; {path} holds the last save")
                bar.set_postfix({name: f"{value:.3g}" for name, value in numbers.items()}, refresh=False)
            bar.update()
            if done % settings.sample_every == 0 or done == end:
                with torch.no_grad():
                    images, columns = recipe.samples()
                log.images(done, images, columns)
            if done % settings.save_every == 0 or done == end or stop:
                if first:
                    checkpoint.save(path, recipe.name, dataclasses.asdict(settings), done, recipe.state())
                ranks.wait()  # a process that ended here would make torchrun end the one that writes
            if stop:
                return


def _previous(path: Path, name: str, settings: Settings, resume: bool) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, if any."""
    if not resume:
        if path.exists():
            raise ValueError(f"out: {path.parent} holds the checkpoint of a run; resume it, or choose another folder")
        for name_ in ("settings.json", "metrics.jsonl"):
            if (path.parent / name_).exists() and ranks.rank() == 0:
                raise ValueError(
                    f"out: {path.parent} holds a file {name_}, which is not overwritten; choose another folder"
                )
        if settings.data:
            check_outside(path.parent, settings.data)
        return None
    content = checkpoint.load(path, name)
    wanted = dataclasses.asdict(settings)
    if 0 < settings.iterations < content["iteration"]:
        raise ValueError(
            f"iterations: expected at least the {content['iteration']} that are done, got {settings.iterations}"
        )
    for key, value in content["settings"].items():
        if key not in _FREE and key in wanted and not _same(wanted[key], value):
            raise ValueError(f"{key}: expected {value!r}, as in {path}, got {wanted[key]!r}")
    return content


def _same(a: Any, b: Any) -> bool:
    both = isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str)
    return list(a) == list(b) if both else a == b


class _Log:
    """The files in the folder of a run, other than its checkpoint."""

    def __init__(self, folder: Path, start: int, settings: Settings, enabled: bool) -> None:
        self.folder, self.start, self.settings, self.enabled = folder, start, settings, enabled
        self.file: Any = None
        self.board: Any = None

    def __enter__(self) -> _Log:
        if not self.enabled:
            return self
        with checkpoint.replacing(self.folder / "settings.json", "w") as file:
            json.dump(dataclasses.asdict(self.settings), file, indent=2)
        path = self.folder / "metrics.jsonl"
        lines = path.read_text("utf-8", errors="replace").splitlines() if self.start and path.exists() else []
        with checkpoint.replacing(path, "w") as file:  # without the lines of iterations that are about to be repeated
            file.writelines(f"{line}\n" for line in lines if _iteration(line) <= self.start)
        self.file = path.open("a", encoding="utf-8")
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder), purge_step=self.start + 1)
        return self

    def __exit__(self, *_: Any) -> None:
        for one in (self.file, self.board):
            if one is not None:
                one.close()

    def write(self, iteration: int, numbers: dict[str, float]) -> None:
        if self.file is not None:
            shown = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
            self.file.write(json.dumps({"iteration": iteration, **shown}) + "\n")
            self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, iteration)

    def images(self, iteration: int, images: torch.Tensor, columns: int) -> None:
        if self.enabled:
            sheet = grid(images, columns)
            with checkpoint.replacing(self.folder / "samples" / f"{iteration:07d}.png") as file:
                sheet.save(file, "PNG")


def _iteration(line: str) -> int:
    try:
        return int(json.loads(line)["iteration"])
    except (KeyError, OverflowError, TypeError, ValueError):
        return 1 << 62  # a line that was cut short


class _Interruption:
    """Turns Ctrl-C and SIGTERM into a request to stop after the iteration; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False  # in this process or another
        self.pressed = 0  # Ctrl-C in this process
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.pressed += number == signal.SIGINT
        self.requested = True
        if self.pressed > 1:
            raise KeyboardInterrupt

    def agreed(self) -> bool:
        """Tell whether any process is asked to stop; all get the same answer."""
        if ranks.world_size() > 1:
            flag = torch.tensor(float(self.requested))
            if torch.distributed.get_backend() == "nccl":
                flag = flag.cuda()
            ranks.average_(flag)
            self.requested = bool(flag > 0)
        return self.requested
