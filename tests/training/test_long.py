"""Long runs need no more memory, files or threads than short ones."""

import gc
import os
import threading

import pytest
from lightning.pytorch.callbacks import Callback


class Watch(Callback):
    """Records memory, open files and threads every thousand steps."""

    seen: list = []  # noqa: RUF012

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % 1000 == 0:
            gc.collect()
            with open("/proc/self/statm") as statm:
                pages = int(statm.read().split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            Watch.seen.append(
                (megabytes, len(os.listdir("/proc/self/fd")), threading.active_count())
            )


@pytest.mark.linux
@pytest.mark.slow
def test_twenty_thousand_steps_grow_nothing(train):
    Watch.seen.clear()
    train(
        "trainer.max_steps=20000",
        "trainer.val_check_interval=500",
        "trainer.log_every_n_steps=10",
        "checkpoint.every_seconds=1",
        "+callbacks.watch._target_=test_long.Watch",
    )
    warm, last = Watch.seen[4], Watch.seen[-1]
    assert last[0] - warm[0] < 10, Watch.seen
    assert last[1] <= warm[1]
    assert last[2] <= warm[2]
