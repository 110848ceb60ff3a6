"""Simulating a training step on many devices."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ROOT, wait_until
from litchar.analysis import scaling
from litchar.analysis.scaling import (
    H100,
    MODELS,
    Model,
    all_reduce_seconds,
    main,
    ring_bytes,
    simulate,
    table,
)

MODEL = Model(12, 768, 512)
IDLE = replace(H100, latency=0.0)


def test_a_ring_sends_twice_the_share_of_the_others():
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 2) == 100
    assert ring_bytes(100, 4) == 150
    assert ring_bytes(100, 10**9) == pytest.approx(200)


def test_within_a_node_the_near_link_counts_and_between_nodes_each_device_sends_its_share():
    assert all_reduce_seconds(8e9, 8, IDLE) == pytest.approx(2 * 7 / 8 * 8e9 / 450e9)
    between = all_reduce_seconds(8e9, 16, IDLE) - all_reduce_seconds(8e9, 8, IDLE)
    assert between == pytest.approx(2 * 1 / 2 * 1e9 / 50e9)
    assert all_reduce_seconds(0, 16, H100) == pytest.approx((2 * 7 + 2 * 1) * H100.latency)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("devices", [2, 8, 64, 1024])
def test_a_step_takes_as_long_as_the_slower_and_no_longer_than_both(sharded, devices):
    for model in MODELS.values():
        step = simulate(model, 16_384, devices, H100, sharded)
        assert max(step.compute, step.link) <= step.seconds <= step.compute + step.link


def test_one_device_computes_alone():
    for sharded in (False, True):
        step = simulate(MODEL, 16_384, 1, H100, sharded)
        assert step.link == 0
        assert step.seconds == pytest.approx(16_384 * MODEL.flops_per_character / H100.flops)


def test_a_fast_link_hides_but_for_the_last_layer_and_a_slow_one_is_all_there_is():
    step = simulate(MODEL, 10**9, 8, IDLE)
    last = all_reduce_seconds(4 * MODEL.parameters / 12, 8, IDLE)
    assert step.seconds == pytest.approx(step.compute + last, rel=1e-12)
    slow = simulate(MODEL, 1, 8, IDLE)
    assert slow.seconds == pytest.approx(slow.link, rel=1e-3)
    assert slow.link == pytest.approx(all_reduce_seconds(4 * MODEL.parameters, 8, IDLE))


def test_sharding_sends_half_as_much_again():
    whole, sharded = (simulate(MODEL, 16_384, 8, IDLE, sharded) for sharded in (False, True))
    assert sharded.link == pytest.approx(1.5 * whole.link)


def test_sharding_divides_the_state_among_the_devices():
    for sharded, share in ((False, 1), (True, 1 / 8)):
        *_, alone, of_eight = table(H100, 16_384, sharded, (1, 8))  # of the largest model
        gigabytes = float(alone["state GB"])
        assert gigabytes > 100
        assert float(of_eight["state GB"]) == pytest.approx(share * gigabytes, abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--measure", "--width", "100"], "--width 100: must be a multiple of 8"),
        (["--devices", "8", "0"], "numbers must be at least 1"),
        (["--steps", "0"], "numbers must be at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    assert refusal.value.code == 2
    assert words in capsys.readouterr().err


def test_the_table_has_a_row_for_each_model_and_number_of_devices(capsys):
    main(["--devices", "8", "64"])
    assert capsys.readouterr().out.count("12 x 768") == 2


@pytest.mark.linux
@pytest.mark.slow
def test_a_measurement_ends_when_all_of_its_processes_are_told_to():
    command = [sys.executable, str(ROOT / "scripts/scaling.py"), "--measure", "--steps", "100000"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def measures() -> bool:
            """Return whether a child process has used more CPU time than imports take."""
            found = [Path(f"/proc/{child}/stat") for child in children.read_text().split()]
            ticks = [int(stat.read_text().rpartition(")")[2].split()[11]) for stat in found]
            return max(ticks, default=0) > 5 * os.sysconf("SC_CLK_TCK")

        wait_until(measures, process)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_a_measurement_ends_on_ctrl_c_as_all_programs_do(monkeypatch):
    monkeypatch.setattr(scaling, "measure", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        main(["--measure"])
    assert ended.value.code == 128 + signal.SIGINT
