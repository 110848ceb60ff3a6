"""Checkpoints: written atomically, loaded without executing any code in them."""

from litchar.checkpoints.checkpoint import Checkpoint, default_outputs, find, trained
from litchar.checkpoints.files import load, save

__all__ = ["Checkpoint", "default_outputs", "find", "load", "save", "trained"]
