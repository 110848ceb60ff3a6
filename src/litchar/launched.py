"""The place of this process in a distributed run, if torchrun, srun or rank 0 started it.

Nothing heavy is imported here; see `litchar.cli`.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A process among those that train together.

    Attributes:
        rank: its index among all processes.
        local_rank: its index on its machine, which selects its device.
        node_rank: the index of its machine.
        world_size: the number of processes.
    """

    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1


def launched() -> Place | None:
    """Return the place that a launcher gave this process; None if it runs alone.

    torchrun and our own rank 0 set RANK and related variables. srun sets variables of its own,
    which count only for more than one task: a batch script without srun has them as well.
    """
    given = os.environ
    if {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= given.keys():
        place = Place(
            int(given["RANK"]),
            int(given["LOCAL_RANK"]),
            int(given.get("GROUP_RANK", given.get("NODE_RANK", "0"))),
            int(given["WORLD_SIZE"]),
        )
    elif "SLURM_PROCID" in given and "SLURM_STEP_NUM_TASKS" in given:
        place = Place(
            int(given["SLURM_PROCID"]),
            int(given["SLURM_LOCALID"]),
            int(given["SLURM_NODEID"]),
            int(given["SLURM_STEP_NUM_TASKS"]),
        )
    else:
        return None
    return place if place.world_size > 1 else None
