"""Checkpoints: written atomically, loaded without executing any code in them."""

from litchar.checkpoints.checkpoint import Checkpoint, find, trained
from litchar.checkpoints.files import load, save

__all__ = ["Checkpoint", "find", "load", "save", "trained"]
