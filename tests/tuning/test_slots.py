"""Which worker owns which trial, for any order in which workers act."""

import random

import pytest
from optuna.trial import FrozenTrial, TrialState

from litchar.tuning.slots import filled, is_mine, lost, place, root, slots

RUNNING, FAIL, COMPLETE = TrialState.RUNNING, TrialState.FAIL, TrialState.COMPLETE


def trial(number: int, state: TrialState, **attributes) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs=attributes,
        system_attrs={},
        intermediate_values={},
    )


def test_a_lost_trials_slot_is_held_by_the_first_that_takes_it_again():
    trials = [
        trial(0, COMPLETE, outcome="completed"),
        trial(1, FAIL, outcome="lost"),
        trial(2, FAIL, outcome="withdrawn", root=1, retry_of=1),
        trial(3, RUNNING, root=1, retry_of=1),
        trial(4, RUNNING, root=1, retry_of=1),
    ]
    assert [one.number for one in filled(trials, 9)] == [0, 3]
    assert is_mine(3, trials, 2)
    assert not is_mine(4, trials, 2)


def test_the_last_slots_go_to_the_first_trials():
    trials = [trial(n, RUNNING) for n in range(4)]
    assert [is_mine(n, trials, 3) for n in range(4)] == [True, True, True, False]


def test_what_was_begun_goes_before_what_is_new():
    trials = [trial(0, FAIL, outcome="lost"), *(trial(n, RUNNING) for n in (1, 2, 3))]
    trials.append(trial(4, RUNNING, root=0, retry_of=0))
    assert [one.number for one in filled(trials, 3)] == [4, 1, 2]


def test_a_slot_whose_trial_broke_is_free_and_its_values_are_not_drawn_again():
    trials = [trial(0, FAIL, outcome="failed"), trial(1, RUNNING), trial(2, RUNNING)]
    assert [one.number for one in filled(trials, 2)] == [1, 2]
    assert place(1, trials) == 1


class Crowd:
    """Workers that share a storage and act in small steps, in random order."""

    def __init__(self, seed: int, total: int, workers: int) -> None:
        self.draw = random.Random(seed)
        self.total = total
        self.trials: list[FrozenTrial] = []
        self.completed: list[int] = []  # slots
        self.workers: list[tuple[str, int | None]] = [("idle", None)] * workers

    def snapshot(self) -> list[FrozenTrial]:
        return [
            trial(one.number, one.state, **one.user_attrs) for one in self.trials
        ]  # what the step before wrote stays as it was seen

    def act(self, worker: int) -> None:
        state, number = self.workers[worker]
        if state == "idle":
            held = filled(self.trials, self.total)
            again = next((one for one in held if lost(one)), None)
            if again is not None:
                self.workers[worker] = ("sees", again.number)
            elif len(held) < self.total:
                self.workers[worker] = ("sees", None)
        elif state == "sees":  # and creates, maybe long after
            attributes = {}
            if number is not None:
                attributes = {"root": root(self.trials[number]), "retry_of": number}
            self.trials.append(trial(len(self.trials), RUNNING, **attributes))
            self.workers[worker] = ("created", len(self.trials) - 1)
        elif state == "created":
            if is_mine(number, self.snapshot(), self.total):
                self.workers[worker] = ("trains", number)
            else:
                self.trials[number].user_attrs["outcome"] = "withdrawn"
                self.trials[number].state = FAIL
                self.workers[worker] = ("idle", None)
        elif state == "trains" and self.draw.random() < 0.5:
            outcome = "failed" if self.draw.random() < 0.1 else "completed"
            self.trials[number].user_attrs["outcome"] = outcome
            self.trials[number].state = FAIL if outcome == "failed" else COMPLETE
            if outcome == "completed":
                self.completed.append(root(self.trials[number]))
            self.workers[worker] = ("idle", None)

    def kill(self, worker: int) -> None:
        """Kill a worker: its trial is marked as lost, and a new worker takes its place."""
        state, number = self.workers[worker]
        if state in ("created", "trains"):
            self.trials[number].user_attrs["outcome"] = "lost"
            self.trials[number].state = FAIL
        self.workers[worker] = ("idle", None)

    def run(self) -> None:
        for _ in range(5000):
            worker = self.draw.randrange(len(self.workers))
            if self.draw.random() < 0.1:
                self.kill(worker)
            else:
                self.act(worker)
            held = filled(self.trials, self.total)
            if len(held) == self.total and all(one.state == COMPLETE for one in held):
                return
        raise AssertionError("the study does not end")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_trial_is_lost_and_none_is_completed_twice(workers):
    for seed in range(25):
        crowd = Crowd(seed, 6, workers)
        crowd.run()
        # Let the workers finish what they started; none may be training a surplus trial.
        for worker in range(workers):
            while crowd.workers[worker][0] not in ("idle", "trains"):
                crowd.act(worker)
        assert [state for state, _ in crowd.workers] == ["idle"] * workers
        assert len(crowd.completed) == len(set(crowd.completed)) == 6
        assert set(slots(crowd.trials)) >= set(crowd.completed)
