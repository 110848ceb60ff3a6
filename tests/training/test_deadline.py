"""A run that only time ends is, step for step, the one that was planned with as many steps."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from conftest import assert_same_run, summary
from litchar.errors import Interrupted, UserError
from litchar.terminal import Terminal
from litchar.training.deadline import Deadline
from litchar.training.module import LanguageModel
from litchar.training.resolve import resolve_by_device, resolve_steps

SAME = ("model.dropout=0.2", "scheduler.warmup_steps=3")
TIMED = ("trainer.max_steps=null", "trainer.max_time=00:00:00:20", *SAME)


@pytest.fixture
def clock(monkeypatch):
    """The Timer's clock; a batch takes `clock.batch` seconds of it."""
    clock, step = SimpleNamespace(now=0.0, batch=1.0), LanguageModel.training_step

    def training_step(self, batch):
        clock.now += clock.batch
        return step(self, batch)

    time = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", time)
    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    return clock


def planned(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "decays from" in line]


@pytest.mark.parametrize(
    ("setting", "step", "steps"),
    [
        ((), 10, 20),
        (("scheduler.decay_fraction=0.2",), 16, 20),
        (("trainer.max_time=00:00:00:19",), 10, 20),  # after 9.5 seconds
        (("trainer.accumulate_grad_batches=2", "trainer.max_time=00:00:00:18"), 5, 10),
        (("trainer.min_steps=23",), 10, 23),
    ],
)
def test_once_the_plateau_is_over_a_run_is_the_one_of_so_many_steps(
    train, clock, capsys, setting, step, steps
):
    timed = train(*TIMED, *setting, name="timed")
    assert planned(capsys) == [f"The learning rate decays from step {step} to {steps}"]
    counted = [given for given in setting if "max_time" not in given]
    assert_same_run(train(*SAME, *counted, f"trainer.max_steps={steps}", name="counted"), timed)


@pytest.mark.parametrize("step", [4, 10, 15])
def test_a_run_stopped_before_or_after_its_steps_are_known_goes_on_exactly(
    train, clock, capsys, step
):
    whole = train(*TIMED, name="whole")
    stop = ("+callbacks.stop._target_=conftest.SignalAt", f"+callbacks.stop.step={step}")
    with pytest.raises(Interrupted):
        train(*TIMED, *stop, name="stopped")
    clock.now += 1000  # a pause is not counted
    train(*SAME, "trainer.max_steps=null", "resume=auto", name="stopped")  # for the time it had
    assert_same_run(whole, whole.with_name("stopped"))
    assert len(planned(capsys)) == 2  # once a run


def test_a_machine_that_slows_down_takes_all_steps_of_the_decay(train, clock, monkeypatch):
    def say(self, what):
        if "decays from" in what:
            clock.batch = 10.0

    monkeypatch.setattr(Terminal, "say", say)
    assert summary(train(*TIMED))["steps"] == 20
    assert clock.now == 10 + 10 * 10


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ("trainer.max_time=00:00:00:20", 20),  # nothing is left to do
        ("trainer.max_time=00:00:00:10", 20),
        ("trainer.max_time=00:00:00:30", 30),  # two thirds of the steps, decaying at once
        ("trainer.max_time=00:00:01:00", 60),  # of which 10 seconds are left before the decay
        ("trainer.max_steps=25", 25),
    ],
)
def test_a_run_that_time_ended_goes_on_for_another_length(train, clock, length, steps):
    open_steps = "trainer.max_steps=null"
    assert summary(train(*TIMED))["steps"] == 20
    assert summary(train(*SAME, open_steps, length, "resume=auto"))["steps"] == steps


def test_the_time_of_a_run_is_kept_where_steps_are_left_out_or_added(train, clock):
    within = (*TIMED, "trainer.max_steps=100", "scheduler=constant", "scheduler.warmup_steps=0")
    stop = ("+callbacks.stop._target_=conftest.SignalAt", "+callbacks.stop.step=8")
    with pytest.raises(Interrupted):
        train(*within, *stop)
    assert summary(train(*within, "trainer.max_steps=-1", "resume=auto"))["steps"] == 20


def test_rank_0_decides_when_the_plan_is_made():
    deadline = Deadline(20.0, 0.5, Mock())
    trainer = Mock(max_steps=-1, global_step=7, min_steps=None)
    trainer.fit_loop.epoch_loop._should_accumulate.return_value = False
    for seconds, total in ((9.9, None), (10.0, 14)):
        trainer.strategy.broadcast.return_value = seconds  # whatever its own clock says
        deadline.on_train_batch_end(trainer)
        assert deadline.state_dict()["total_steps"] == total


@pytest.mark.parametrize(
    ("setting", "interval"),
    [
        ((), "00:00:01:00"),
        (("trainer.max_time=00:00:00:03",), "00:00:00:01"),
        (("trainer.max_time={days:20,hours:15,seconds:50}",), "02:01:30:05"),
        (("trainer.accumulate_grad_batches=2",), 1000),
        (("+callbacks.more={_target_:GradientAccumulationScheduler}",), 500),
        (("trainer.devices=2",), 500),
        (("trainer.max_steps=50",), 5),
    ],
)
def test_a_tenth_of_the_time_passes_between_validations(compose, setting, interval):
    config = compose("trainer.accelerator=cpu", "trainer.max_time=00:00:10:00", *setting)
    resolve_by_device(config)
    resolve_steps(config, 10**6, 10**4)
    assert config.trainer.val_check_interval == interval


def test_what_looks_at_the_interval_between_validations_works_with_a_time(train, clock):
    stopping = ("callbacks=early_stopping", "trainer.val_check_interval=null")
    assert summary(train(*TIMED, *stopping))["steps"] == 20


def test_a_timer_of_ones_own_is_refused_where_there_is_one(train):
    timer = "{_target_:lightning.pytorch.callbacks.Timer,duration:'00:00:00:02'}"
    with pytest.raises(UserError, match="has a Timer already; leave out your own"):
        train(*TIMED, f"+callbacks.timer={timer}")


def test_a_run_that_validates_by_time_is_not_gone_on_with_by_several_ranks(train, clock):
    interval = "trainer.val_check_interval=null"
    assert summary(train(*TIMED, interval))["steps"] == 20
    with pytest.raises(UserError, match=r"=00:00:00:02: .*resume it on one device"):
        train(*TIMED, interval, "resume=auto", "trainer=ddp", "trainer.devices=2")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("scheduler=cosine", "use scheduler=wsd"),
        ("scheduler.decay_fraction=1", "know the number of steps"),
        ("trainer.max_time=10m", "trainer.max_time=10m: .*DD:HH:MM:SS"),
        ("trainer.max_time={second:1}", "trainer.max_time={'second': 1}: 'second' is an invalid"),
    ],
)
def test_what_time_alone_cannot_end_is_refused(train, setting, words):
    with pytest.raises(UserError, match=words):
        train("trainer.max_steps=null", "trainer.max_time=00:00:00:20", setting)
