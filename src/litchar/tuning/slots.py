"""Which trial holds which slot: all workers agree, however many start or are killed at once.

A study of n trials has n slots. A slot is filled by a trial or, if that is lost (its worker was
killed, or a signal ended it), by another one with the same values, which resumes the same run.
Storages number trials in the order in which they were created. So a worker first creates its trial,
then checks whether an earlier one has taken the same slot, and withdraws if so: of two workers at
least one sees the other, and both come to the same answer.
"""

from collections.abc import Sequence

from optuna.trial import BaseTrial, FrozenTrial, TrialState

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def root(trial: BaseTrial) -> int:
    """Return the number of the slot that `trial` is for: the number of the slot's first trial."""
    return int(trial.user_attrs.get("root", trial.number))


def slots(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trial that holds each slot, by slot number."""
    held: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.user_attrs.get("outcome") == "withdrawn":
            continue
        before = held.get(root(trial))
        if before is None or before.number == trial.user_attrs.get("retry_of"):
            held[root(trial)] = trial
    return held


def filled(trials: Sequence[FrozenTrial], total: int) -> list[FrozenTrial]:
    """Return the trials that hold the study's slots, at most `total`; a slot whose trial failed
    with a program error is free again."""
    return [trial for _, trial in sorted(slots(trials).items()) if not _broke(trial)][:total]


def lost(trial: FrozenTrial) -> bool:
    """Return whether a trial ended without a result and has to be retried."""
    return trial.state == TrialState.FAIL and not _broke(trial)


def is_mine(number: int, trials: Sequence[FrozenTrial], total: int) -> bool:
    """Return whether trial `number` holds a slot of the study."""
    return any(trial.number == number for trial in filled(trials, total))


def place(slot: int, trials: Sequence[FrozenTrial]) -> int:
    """Return how many slots were opened before `slot`: not changed by interruptions."""
    return sum(number < slot for number in slots(trials))


def _broke(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and trial.user_attrs.get("outcome") == "failed"
