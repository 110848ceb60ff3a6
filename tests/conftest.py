"""Shared fixtures: private caches and outputs, and helpers that train in this process."""

import contextlib
import copy
import csv
import functools
import gc
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The models here are so small that a second thread costs more than it gains. Set before torch is
# imported, which reads it once; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in a run; also read once
os.environ["DISABLE_MPS"] = "1"  # train on the CPU of a Mac

import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Lightning imports Triton

from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litchar import signals
from litchar.checkpoints import load
from litchar.overrides import quote

ROOT = Path(__file__).resolve().parents[1]

# A small structured text of 8,000 characters, 15 of them distinct, and a transformer for it.
TEXT = "".join(f"{a} and {b}\n" for a in range(40) for b in range(40))[:8000]
SMALL = (
    "data.block_size=16",
    "data.batch_size=8",
    "data.train_sample=512",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=20",
    "trainer.log_every_n_steps=5",
    "trainer.val_check_interval=10",
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("linux") and sys.platform != "linux":
        pytest.skip("needs Linux")


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("LITCHAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LITCHAR_OUTPUTS", str(tmp_path / "outputs"))


@pytest.fixture(autouse=True, scope="session")
def _places_of_shared_fixtures(tmp_path_factory):
    """Give fixtures that are made before a test's own places a cache and outputs, too."""
    place = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITCHAR_CACHE", str(place / "cache"))
        patch.setenv("LITCHAR_OUTPUTS", str(place / "outputs"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _configuration_is_parsed_once():
    """Parse each configuration once, where Hydra would do it each time."""
    load = OmegaConf.load
    parsed = functools.cache(lambda text: load(io.StringIO(text)))

    def load_once(file):
        return load(file) if isinstance(file, str | Path) else copy.deepcopy(parsed(file.read()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        yield


@pytest.fixture(autouse=True, scope="module")
def _kept_is_looked_through_once():
    """Exempt what earlier modules imported and kept from each run's garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_signals():
    before = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    yield
    signals.reset()
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    """Let pytest-playwright's `page` drive the system's Chromium, with its own networking off."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        reason = "no chromium on this machine; apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    quiet.append("--enable-unsafe-swiftshader")  # WebGL without a GPU
    return {**browser_type_launch_args, "executable_path": chromium, "args": quiet}


@pytest.fixture
def text_file(tmp_path):
    """A file with `TEXT`."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def composed(script: str, *overrides: str, conf: Path = ROOT / "conf") -> DictConfig:
    """Compose the configuration of a script with overrides, as its command line does.

    What groups make of it is composed once, and each time only the values are set in a copy, as
    Hydra does last: a tenth of its time, and tests compose a thousand times.
    """
    OmegaConf.register_new_resolver("unique", lambda: "test", replace=True)
    groups, values = [], []
    for override in OverridesParser.create().parse_overrides([*overrides]):
        group = (conf / override.key_or_group).is_dir() or override.is_sweep_override()
        (groups if group or override.is_hydra_override() else values).append(override)
    config = pickle.loads(_of_groups(script, tuple(group.input_line for group in groups), conf))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


@functools.cache
def _of_groups(script: str, groups: tuple[str, ...], conf: Path) -> bytes:
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        return pickle.dumps(hydra.compose(script, [*groups]))


@pytest.fixture
def compose():
    """Compose `conf/train.yaml` with overrides, as the command line does."""
    return functools.partial(composed, "train", "name=test")


@pytest.fixture
def train(compose, text_file, tmp_path):
    """Train a small transformer on `text_file` in this process; return its run directory.

    Tests of the report set report=true. Without its dashboard, which changes no figure of a run
    (`tests/analysis/test_dashboard.py`), a run takes two thirds of the time.
    """
    small = (f"data.path={text_file}", *SMALL)

    def train(
        *overrides: str, name: str = "run", only: bool = False, dashboard: bool = False
    ) -> Path:
        from litchar.training.run import run

        signals.reset()
        run_dir = tmp_path / "outputs" / "runs" / name
        run_dir.mkdir(parents=True, exist_ok=True)
        chosen = dashboard or any(o.startswith(("callbacks", "~callbacks")) for o in overrides)
        quick = ("report=false", *(() if chosen else ("callbacks=none",)))
        run(compose(*quick, *(() if only else small), *overrides), run_dir)
        return run_dir

    return train


@pytest.fixture
def generated(capsys):
    """Run generate in this process as its script does; return its stdout and stderr."""

    def generated(*overrides: str) -> tuple[str, str]:
        from litchar.generation.run import run

        config = composed("generate", "device=cpu", *map(quote, overrides))
        capsys.readouterr()
        run(config)
        return capsys.readouterr()

    return generated


@pytest.fixture
def loss_of():
    """Run evaluate in this process as its script does; return the loss."""

    def loss_of(*overrides: str) -> float:
        from litchar.analysis.evaluate import run

        return run(composed("evaluate", "device=cpu", *map(quote, overrides)))

    return loss_of


@pytest.fixture
def script(tmp_path):
    """Run a script as a user would, in a directory of its own."""

    def script(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        directory = tmp_path / "elsewhere"
        directory.mkdir(exist_ok=True)
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / name), *arguments],
            capture_output=True,
            text=True,
            cwd=directory,
            env=os.environ | {"COLUMNS": "80"},
            check=False,
            **options,
        )

    return script


def hears_hangups() -> None:
    """Make a process about to be started hear SIGHUP, even if the tests run under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until `condition` holds while `process` is running."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars that TensorBoard shows for `directory`: steps and values of each tag.

    TensorBoard reads event files in order of their names, which is chronological unless one process
    creates several within a second, as only tests do. Here the order is always chronological.
    """
    in_order = sorted(directory.glob("events*"), key=lambda file: file.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(in_order):
            os.symlink(file.absolute(), Path(folder, f"events.out.tfevents.{i:010}.host"))
        events = EventAccumulator(folder).Reload()
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }


def summary(run_dir: Path) -> dict:
    """Return a run's summary.json."""
    return json.loads((run_dir / "summary.json").read_text())


def figures(run_dir: Path) -> tuple:
    """Return everything that a run recorded, except times and speeds."""
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = [
            {key: value for key, value in row.items() if "speed" not in key}
            for row in csv.DictReader(file)
        ]
    curves = scalars(run_dir / "tensorboard")
    curves = {t: points for t, points in curves.items() if "speed" not in t and "seconds" not in t}
    kept = {
        key: value
        for key, value in summary(run_dir).items()
        if key not in ("checkpoint", "peak_memory_bytes", "characters_per_second")
        and "seconds" not in key
    }
    return rows, curves, kept, (run_dir / "samples.txt").read_text()


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs have bitwise identical records, weights and optimiser states."""
    assert figures(one) == figures(other)
    a, b = (load(run / "checkpoints/last.ckpt") for run in (one, other))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    (a, b) = (checkpoint["optimizer_states"][0] for checkpoint in (a, b))
    torch.testing.assert_close(a["state"], b["state"], rtol=0, atol=0)
    assert a["param_groups"] == b["param_groups"]
    assert not list(other.rglob(".draft*"))


class SignalAt(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, signum: int = signal.SIGTERM, rank: int = 0):
        self.step = step
        self.signum = signum
        self.rank = rank

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)


class Dies(Callback):
    """Fails in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            raise ZeroDivisionError


class Spoils(Callback):
    """Sets the weights to NaN before a step, counted from 1."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            for parameter in trainer.lightning_module.parameters():
                parameter.data.fill_(float("nan"))


class SignalIn(Callback):
    """Sends this process a signal at the start of a batch, counted from 1."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, *_):
        self.batch -= 1
        if self.batch == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class StopsAt(Callback):
    """Asks the Trainer to stop at the end of a batch, counted from 1."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_end(self, trainer, *_):
        self.batch -= 1
        if self.batch == 0:
            trainer.should_stop = True


class FailAt(Callback):
    """Fails one rank in the middle of a step."""

    def __init__(self, step: int, rank: int):
        self.step = step
        self.rank = rank

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            raise LookupError("lost the thread")


class LeavesOut(Callback):
    """Keeps the gradient from one rank's first feed-forward layer from a step on, counted from 1,
    as if its part of the batch used another expert."""

    def __init__(self, step: int, rank: int):
        self.step = step
        self.rank = rank

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            layer = module.model.blocks[0].feed_forward
            layer.register_forward_hook(lambda layer, given, returned: returned.detach())


class DeleteAt(Callback):
    """Deletes the run directory in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            shutil.rmtree(trainer.default_root_dir)


class FullDisk(Callback):
    """Simulates a full disk: no file can grow past `most_bytes` between two steps."""

    def __init__(self, first: int, last: int, most_bytes: int):
        self.first, self.last, self.most_bytes = first, last, most_bytes

    def on_train_batch_start(self, trainer, *_):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if trainer.global_step + 1 == self.first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most_bytes, hard))
        if trainer.global_step == self.last:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))

    def teardown(self, *_, **__):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))

    on_exception = teardown


class FillDisk(Callback):
    """Fills the run directory's disk to the last byte between two steps."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last

    def on_train_batch_start(self, trainer, *_):
        filler = Path(trainer.default_root_dir) / "filler"
        if trainer.global_step + 1 == self.first:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
        if trainer.global_step == self.last:
            filler.unlink()
