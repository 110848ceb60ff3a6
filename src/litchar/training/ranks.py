"""The processes of a run on several devices: rank 0 leads, and the others follow.

Rank 0 is the process that the user started, or the first one that torchrun or srun started. It
composes the configuration, creates the run directory and writes everything in it. It sends the run
to the other ranks, which take the same steps, print nothing, and write only their warnings, to the
run's log. The ranks meet through a key-value store, which sets up their process group and carries
the reason if one of them fails.

The keys of the store; N counts runs, as the ranks of a launcher may serve many:

============  ============================================  ==============================
key           value, and who writes it                      who waits for it
============  ============================================  ==============================
`joined`      how many other ranks came: each of them       rank 0, before it exits
`run N`       the run, or null after the last: rank 0       the others
`ready N`     how many are ready for the run: each of them  rank 0, before the run begins
`group N`     prefix of the process group's own keys        all, as they join the group
`failures N`  how many ranks failed: each that fails        nobody, but only the first tells why
`failure N`   who failed first, and why: that rank          rank 0, until ready or if it fails
`left`        how many other ranks ended: each of them      rank 0, before it exits
============  ============================================  ==============================

Lightning's own launcher runs the command line again for each rank. For a sweep that would be the
whole sweep, and each rank would compose a run directory of its own (Lightning issue 11300).
"""

import atexit
import contextlib
import functools
import itertools
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from torch.distributed import (  # type: ignore[attr-defined]
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
    rendezvous,
)

from litchar import signals
from litchar.errors import (
    DivergedError,
    Interrupted,
    RankError,
    UserError,
    first_line,
    is_users,
    reason,
)
from litchar.launched import Place, launched
from litchar.training.summary import write_summary

START_SECONDS = 600  # for all ranks to import and to open the text
END_SECONDS = 60  # for a rank to exit after the run has ended
NOTICE_SECONDS = 5  # for a rank's end or failure to become known
STUCK_SECONDS = 30  # before giving up on a dead rank, or reporting one that never came
HEED_SECONDS = 60  # for a signal to reach Python, from within whatever C code it interrupts

_numbers = itertools.count()  # numbers of the runs that this process leads
_given_up = threading.Event()  # set when we stop waiting for ranks that never came


class Environment(LightningEnvironment):
    """Tells the Trainer its rank, and that the processes are started already."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        """Whether the processes are started elsewhere: always, so the Trainer starts none."""
        return True

    def local_rank(self) -> int:
        """Return this process's rank on its machine."""
        return self.place.local_rank

    def node_rank(self) -> int:
        """Return this machine's rank."""
        return self.place.node_rank

    def teardown(self) -> None:
        """Leave the environment variables as they are."""


# Prepares a run, and returns its device and the function that trains it.
Prepare = Callable[[Place, DictConfig, Path], tuple[torch.device, Callable[[], None]]]


# Rank 0


class Leader:
    """Rank 0's handle on the other ranks of a run: a context manager, which ends them on exit.

    Args:
        place: from `settle_devices`. The other ranks are started on entry unless a launcher has
            started them.
        run_dir: the run's directory.
    """

    def __init__(self, place: Place, run_dir: Path) -> None:
        self.place = place
        self.run_dir = run_dir
        self._processes: list[subprocess.Popen[bytes]] = []
        self._store: Store | None = None
        self._number = 0  # the run's number in the store
        self._leave = contextlib.ExitStack()
        self._over = threading.Event()
        self._begun = False
        self._forced = 0  # the signal for which the other ranks were killed

    def __enter__(self) -> "Leader":
        if self.place.world_size == 1:
            return self
        if launched() is not None:
            self._store = launchers_store()
            return self
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._store = store
        threads = max(1, torch.get_num_threads() // self.place.world_size)
        self._leave.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        for rank in range(1, self.place.world_size):
            self._processes.append(_start(rank, self.place.world_size, store.port, threads))
        new_signals = self._leave.enter_context(signals.noted())
        threading.Thread(target=self._watch, args=[new_signals], daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if kind is not None and not (self._begun and issubclass(kind, SystemExit)):
            for process in self._processes:  # they have nothing to save
                process.kill()
        # After a second signal, or one outside of training, they wait for this rank for ever.
        seconds = END_SECONDS if kind is None else NOTICE_SECONDS
        deadline = time.monotonic() + seconds
        try:
            self._leave.close()
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))
        finally:  # even after a second Ctrl-C
            for process in self._processes:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
            self._store = None

    def begin(self, config: DictConfig, device: torch.device) -> None:
        """Send the run to the other ranks, and join their process group when all are ready.

        Raises:
            UserError: another rank rejects the configuration or the text.
            RankError: another rank failed or ended, or not all were ready in `START_SECONDS`.
        """
        if self._store is None:
            if config.trainer.strategy != "auto":  # one device, but the strategy needs a group
                self._leave.enter_context(_process_group(self.place, HashStore(), device))
            return
        if not self._processes:  # a launcher's ranks serve one run after the other
            self._number = next(_numbers)
        # As YAML, since JSON would turn every key into a string.
        job = {"config": OmegaConf.to_yaml(config), "run_dir": str(self.run_dir)}
        self._store.set(_key("run", self._number), json.dumps(job))
        if self._processes:  # ranks started here serve no further run
            self._store.set(_key("run", self._number + 1), json.dumps(None))
        ready = _key("ready", self._number)
        began = time.monotonic()
        told = bool(self._processes)
        try:
            while self._store.add(ready, 0) < self.place.world_size - 1:
                if (failure := self._failure()) is not None:
                    raise failure
                waited = time.monotonic() - began
                if waited > STUCK_SECONDS and not told:
                    _say_who_is_missing(self._store, self.place)
                    told = True
                if waited > START_SECONDS:
                    _given_up.set()
                    raise RankError(
                        f"not all of {self.place.world_size} ranks were ready after "
                        f"{START_SECONDS} s"
                    )
                time.sleep(0.02)
        except Interrupted:
            _given_up.set()
            raise
        store = PrefixStore(_key("group", self._number), self._store)
        self._leave.enter_context(_process_group(self.place, store, device))
        self._begun = True

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise another rank's failure in place of the error that it causes in this one."""
        try:
            yield
        except (UserError, DivergedError):
            raise
        except Exception as error:
            if self._forced:
                raise Interrupted(self._forced) from error
            if self._store is None:
                raise
            first = self._store.add(_key("failures", self._number), 1) == 1
            if first and not isinstance(error, RuntimeError):
                raise  # not caused by another rank: process groups raise RuntimeErrors
            deadline = time.monotonic() + NOTICE_SECONDS
            while (failure := self._failure()) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            codes = {process.poll() for process in self._processes}
            if first and failure is not None and codes <= {None, 0, 1}:
                raise  # none was killed: the others failed after this one, often for its reason
            if failure is None and "peer" in str(error):
                failure = RankError(
                    f"another rank ended, which ended the run ({first_line(error)})"
                )
            if failure is None:
                raise
            raise failure from error

    def _failure(self) -> Exception | None:
        """Return the error of the first other rank to fail, or None."""
        assert self._store is not None
        if self._store.check([_key("failure", self._number)]):
            failure = json.loads(self._store.get(_key("failure", self._number)))
            kind = UserError if failure["users"] else RankError
            return kind(f"rank {failure['rank']}: {failure['reason']}")
        codes = [(process.poll(), rank) for rank, process in enumerate(self._processes, 1)]
        code, rank = min(((code, rank) for code, rank in codes if code), default=(0, 0))
        if code:  # one that was killed, if any: the others may have failed because of it
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            return RankError(f"rank {rank} {how}, which ended the run")
        return None

    def _watch(self, new_signals: Callable[[], list[int]]) -> None:
        """End a run that waits in a collective for ever, where Python handles no signal: after the
        death of a rank, a signal that goes unheeded, or a second one.

        When the others are killed, the collective fails, which ends the run; or (NCCL) this does.
        """
        signum, again, deadline = 0, False, math.inf
        while not self._over.wait(0.5):
            if any(process.poll() for process in self._processes):
                if not self._over.wait(STUCK_SECONDS):
                    status, failure, code = "failed", str(self._failure()), 1
                    if signum := self._forced:
                        status, failure, code = "interrupted", f"signal {signum}", 128 + signum
                    with contextlib.suppress(OSError):  # a full disk must not keep it waiting
                        write_summary(self.run_dir, status=status, error=failure)
                    print(f"error: {failure}", file=sys.stderr, flush=True)
                    os._exit(code)
                return
            if came := new_signals():
                again, signum = signum > 0, came[-1]
                seconds = NOTICE_SECONDS if again else HEED_SECONDS
                deadline = min(deadline, time.monotonic() + seconds)
            if time.monotonic() > deadline and (again or not signals.received()):
                self._forced = signum
                for process in self._processes:
                    process.kill()


def _start(rank: int, world_size: int, port: int, threads: int) -> "subprocess.Popen[bytes]":
    """Start a rank on this machine. It ends when its stdin is closed, and so with this process."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # it can import what we can
    }
    # In a session of its own it gets no Ctrl-C from the terminal: rank 0 does, and passes it on.
    return subprocess.Popen(
        [sys.executable, "-m", "litchar.training.follow"],
        env=environment,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


# The others


def follow_runs(prepare: Prepare) -> int:
    """Take part in the runs that rank 0 leads until there are no more; return the exit code."""
    place = launched()
    assert place is not None
    store = launchers_store()
    store.add("joined", 1)
    try:
        return _follow_runs(prepare, place, store)
    finally:
        with contextlib.suppress(RuntimeError):  # the store is gone if rank 0 was killed
            store.add("left", 1)


def _follow_runs(prepare: Prepare, place: Place, store: Store) -> int:
    code = 0
    for number in itertools.count():
        job = json.loads(_wait_for(store, _key("run", number)))
        if job is None:
            break
        run_dir = Path(job["run_dir"])
        with contextlib.ExitStack() as leaving, _logged(run_dir, place.rank):
            try:
                device, train = prepare(place, OmegaConf.create(job["config"]), run_dir)
                store.add(_key("ready", number), 1)
                group = PrefixStore(_key("group", number), store)
                leaving.enter_context(_process_group(place, group, device))
                train()
            except Exception as error:  # report it before the others notice that this rank is gone
                _report(error, place.rank, store, number)
                code = 1
    return code


def _report(error: Exception, rank: int, store: Store, number: int) -> None:
    """Tell rank 0 why this rank failed, if it is the first to fail."""
    if isinstance(error, DivergedError):
        return  # all ranks find it at the same step
    logging.getLogger(__name__).error("failed", exc_info=error)  # rank 0 will soon end this one
    users = is_users(error)
    said = reason(error) if users else f"{type(error).__name__}: {first_line(error)}"
    if store.add(_key("failures", number), 1) == 1:
        failure = {"rank": rank, "users": users, "reason": said.partition("\n")[0]}
        store.set(_key("failure", number), json.dumps(failure))


@contextlib.contextmanager
def _logged(run_dir: Path, rank: int) -> Iterator[None]:
    """Add this rank's warnings to the run's log."""
    handler = logging.FileHandler(run_dir / "train.log", delay=True)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s")
    )
    handler.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


# What all ranks share


@functools.cache
def launchers_store() -> Store:
    """Return the store through which the ranks that a launcher started meet."""
    place = launched()
    assert place is not None
    if "MASTER_ADDR" not in os.environ:  # srun
        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(
            os.environ["SLURM_STEP_NODELIST"]
        )
        os.environ["MASTER_PORT"] = str(15_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000)
    if place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        # torch's rendezvous would block here until all have joined, deaf to signals.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=True, wait_for_workers=False)
    store: Store
    store, _, _ = next(rendezvous("env://", place.rank, place.world_size))
    return store


def _say_who_is_missing(store: Store, place: Place) -> None:
    """Print how many of a launcher's processes have not joined, if any."""
    missing = place.world_size - 1 - store.add("joined", 0)
    if missing:
        print(
            f"waiting for {missing} of the {place.world_size} processes that torchrun or srun "
            "should have started; press Ctrl-C to stop (in a shell that srun started, unset "
            "SLURM_PROCID first)",
            file=sys.stderr,
            flush=True,
        )


def dismiss_at_exit(place: Place) -> None:
    """Dismiss the ranks that a launcher started when this process, their leader, exits."""

    def dismiss() -> None:
        store, others = launchers_store(), place.world_size - 1
        store.set(_key("run", next(_numbers)), json.dumps(None))

        def wait(name: str, seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while store.add(name, 0) < others and time.monotonic() < deadline:
                time.sleep(0.02)  # polls, as the store's server may be in this process

        with contextlib.suppress(Interrupted):
            if not _given_up.is_set():
                wait("joined", STUCK_SECONDS)
                _say_who_is_missing(store, place)
                wait("joined", START_SECONDS)
            wait("left", NOTICE_SECONDS)

    atexit.register(dismiss)


@contextlib.contextmanager
def _process_group(place: Place, store: Store, device: torch.device) -> Iterator[None]:
    """Join the ranks' process group: NCCL on GPUs, Gloo on CPUs."""
    backend = dist.Backend.default_device_backend_map.get(device.type, "gloo")
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _key(name: str, number: int) -> str:
    return f"{name} {number}"


def _wait_for(store: Store, key: str) -> bytes:
    """Return the value of `key` once it is set; polls, so that signals are handled meanwhile."""
    while not store.check([key]):
        time.sleep(0.1)
    value: bytes = store.get(key)
    return value
