"""``posgan-fast run --device cpu``: every way to ask for "cuda" ends on the CPU, and all of it can be undone."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
import torch.distributed as dist
from foreign import SCRIPTS, hooked
from rezipped import rezipped
from torch.jit import _builtins

from posgan_fast import cli
from posgan_fast.integrations import devices
from posgan_fast.integrations.changes import Changes


@pytest.fixture
def sent_to_cpu():
    changes = Changes()
    devices.send_to_cpu(changes)
    yield
    changes.undo()


def in_context():
    with torch.device("cuda"):
        return torch.zeros(2)


def by_default():
    torch.set_default_device("cuda")
    try:
        return torch.nn.Linear(1, 1).weight
    finally:
        torch.set_default_device(None)


def drawn():
    generator = torch.Generator(device="cuda").manual_seed(3)
    assert isinstance(generator, torch.Generator) and isinstance(torch.default_generator, torch.Generator)
    return torch.randn(2, generator=generator, device="cuda")


def streamed():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.cuda.device(0):
        x = torch.ones(1).cuda(non_blocking=True)
    x.record_stream(side)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.cuda.current_stream("cuda:0") == torch.cuda.default_stream()
    return x


def scaled():
    net = torch.nn.Linear(1, 1, device="cuda")
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        loss = net(torch.ones(1, 1, device="cuda")).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return loss


WAYS = {
    "a factory": lambda: torch.zeros(2, device="cuda:1"),
    "an index": lambda: torch.zeros(2, device=0),
    "a device": lambda: torch.full((2,), 1.0, device=torch.device("cuda", 1)),
    "data": lambda: torch.as_tensor([1], device="cuda"),
    "a like": lambda: torch.randn_like(torch.ones(1), device="cuda"),
    "fft": lambda: torch.fft.fftfreq(4, device="cuda"),
    "new_*": lambda: torch.ones(1).new_zeros(2, device="cuda"),
    "pinned": lambda: torch.empty(2, pin_memory=True),
    "to": lambda: torch.ones(1).to("cuda"),
    "to an index": lambda: torch.ones(1).to(0),
    "to, by name": lambda: torch.ones(1).to(device=torch.device("cuda"), dtype=torch.float16),
    "cuda": lambda: torch.ones(1).cuda(0),
    "pin_memory": lambda: torch.ones(1).pin_memory().cuda(non_blocking=True),
    "type": lambda: torch.ones(1).type("torch.cuda.HalfTensor"),
    "a tensor type": lambda: torch.cuda.FloatTensor([1, 2]).type(torch.cuda.LongTensor),
    "storage": lambda: torch.tensor(torch.ones(1).untyped_storage().cuda(0).tolist()),
    "a module": lambda: torch.nn.Linear(1, 1).to("cuda:0").cuda().weight,
    "a module to an index": lambda: torch.nn.Linear(1, 1).to(0).weight,
    "a module made there": lambda: torch.nn.Conv2d(1, 1, 1, device="cuda").weight,
    "a packed sequence": lambda: torch.nn.utils.rnn.pack_sequence([torch.ones(1)]).cuda().data,
    "DataParallel": lambda: torch.nn.DataParallel(torch.nn.Linear(1, 1).cuda(), [0])(torch.ones(1, 1).cuda()),
    "a context": in_context,
    "a default": by_default,
    "a generator": drawn,
    "streams": streamed,
    "autocast and GradScaler": scaled,
    "tracing": lambda: torch.jit.trace(lambda x: x.cuda() + torch.ones(1, device="cuda"), torch.ones(1))(torch.ones(1)),
    "vmap": lambda: torch.vmap(lambda x: x.to("cuda") + torch.ones(1, device="cuda"))(torch.ones(2, 1)),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_cuda_ends_on_the_cpu(sent_to_cpu, way):
    assert WAYS[way]().device.type == "cpu"


def test_devices_given_by_name_and_ranges_that_nobody_watches(sent_to_cpu):
    assert torch.nn.Linear(2, 2).to(device=0).weight.device.type == "cpu"
    assert torch.cuda.mem_get_info(device=0)[1] > 0
    assert torch.cuda.get_device_properties(device="cuda:0").name == "cpu"
    torch.cuda.nvtx.range_end(torch.cuda.nvtx.range_start("step"))

    @torch.cuda.nvtx.range("step")
    def double(x):
        return 2 * x

    with torch.cuda.nvtx.range("step %d", 1):
        assert double(3) == 6


def test_groups_ask_for_nccl_in_any_place(sent_to_cpu):
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert dist.get_backend(dist.new_group([0], None, "nccl")) == "gloo"
    finally:
        dist.destroy_process_group()


def test_what_is_no_cuda_device_stays(sent_to_cpu):
    assert torch.ones(1).to("meta").is_meta and torch.zeros(1, device="meta").is_meta
    assert torch.ones(1).to(torch.float64).dtype == torch.ones(1).to(torch.ones(1).double()).dtype == torch.float64
    assert torch.ones(2, dtype=torch.half).type() == "torch.HalfTensor"
    leaf = torch.ones(1, requires_grad=True)
    assert leaf.to("cuda") is leaf and leaf.cuda() is leaf and leaf.pin_memory() is leaf
    assert pickle.loads(pickle.dumps(torch.device("cuda", 1))) == torch.device("cuda", 1)


def test_queries_answer(sent_to_cpu):
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 1 and torch.cuda.current_device() == 0
    for silent in ("synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect", "init"):
        assert getattr(torch.cuda, silent)() is None
    assert torch.cuda.set_device("cuda:0") is None
    assert torch.cuda.max_memory_allocated("cuda") == torch.cuda.memory_reserved() == 0
    assert torch.cuda.get_device_name() == torch.cuda.get_device_properties(0).name == "cpu"
    assert torch.cuda.get_device_capability() < (7, 0) and torch.cuda.mem_get_info()[0] > 0
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with pytest.raises(RuntimeError, match="expected two recorded events"):
        start.elapsed_time(end)
    start.record()
    torch.cuda.current_stream().record_event(end)
    end.synchronize()
    assert 0 <= start.elapsed_time(end) < 1000 and end.query()
    with torch.cuda.nvtx.range("step"):
        torch.cuda.nvtx.range_push("x")


def test_seeds_are_those_of_the_cpu(sent_to_cpu):
    def draw():
        return torch.randn(2, device="cuda").tolist()

    torch.cuda.manual_seed_all(5)
    state = torch.cuda.get_rng_state()
    first = draw()
    with torch.random.fork_rng(devices=[0]):
        second = draw()
    assert draw() == second
    torch.cuda.set_rng_state(state)
    assert draw() == first
    torch.cuda.set_rng_state(torch.zeros(16, dtype=torch.uint8))  # one of CUDA
    torch.manual_seed(5)
    assert draw() == first


def test_files_of_cuda_load(sent_to_cpu):
    moved = rezipped({"w": torch.ones(2)}, b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    for location in (None, "cuda", torch.device("cuda:1"), {"cuda:0": "cuda:1"}, lambda s, _: s.cuda(0)):
        for weights_only in (True, False):
            moved.seek(0)
            assert torch.load(moved, map_location=location, weights_only=weights_only)["w"].tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_compiles_and_loads(sent_to_cpu):
    def function(x):
        return x + torch.zeros(2) + torch.ones_like(x)

    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    file.seek(0)
    assert torch.jit.load(file, map_location="cuda").cuda().weight.device.type == "cpu"
    assert torch.jit.script(function)(torch.ones(2)).tolist() == [2, 2]


def test_everything_can_be_undone():
    holders = (torch, torch.cuda, torch.cuda.nvtx, torch.Tensor, torch.nn.Module, torch.UntypedStorage, torch.fft)
    holders += (torch.distributed, torch.jit, torch.nn.parallel.DistributedDataParallel, torch.TypedStorage)
    before = [dict(vars(holder)) for holder in holders]
    tables = torch.serialization._package_registry, _builtins._get_builtin_table()
    copies = [list(table) for table in tables]
    changes = Changes()
    devices.send_to_cpu(changes)
    assert any(dict(vars(holder)) != old for holder, old in zip(holders, before, strict=True))
    changes.undo()
    for holder, old in zip(holders, before, strict=True):
        now = dict(vars(holder))
        assert now.keys() == old.keys() and all(now[name] is old[name] for name in now), holder
    assert [list(table) for table in tables] == copies


def test_a_script_with_cuda_in_it_runs(tmp_path):
    """The script spawns processes and uses threads, NCCL and DistributedDataParallel."""
    done = hooked("--device", "cpu", SCRIPTS / "hard_coded.py", tmp_path / "rendezvous", tmp_path / "saved.pt")
    assert done.stdout.strip() == "[[3.0, 2.0], [1.0, 0.0], [1.0]] gloo True 0", done.stderr
    assert "torch.utils.data.Sampler.__init__(data_source)" in done.stderr
    assert "torch.optim.Adam(betas=(0, 0.99))" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the script runs here by itself")
def test_off_unless_asked(tmp_path):
    done = hooked(SCRIPTS / "hard_coded.py", tmp_path / "rendezvous", tmp_path / "saved.pt")
    assert done.returncode == 1 and "_cuda_setDevice" in done.stderr


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "CPU", ""])
def test_other_devices_are_refused(device, capsys):
    assert cli.main(["run", f"--device={device}", "x.py"]) == 2
    assert f'--device: expected cpu, where programs with a hard-coded "cuda" are sent, got {device!r}' in (
        capsys.readouterr().err
    )
