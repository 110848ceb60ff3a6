"""Checkpoints: written whole, loaded without running anything in them."""

from litchar.checkpoints.checkpoint import Checkpoint, find, trained
from litchar.checkpoints.files import load, save

__all__ = ["Checkpoint", "find", "load", "save", "trained"]
