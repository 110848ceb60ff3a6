"""Which part of the validation split a run is validated on, as its settings say.

Nothing heavy is imported here; see `litchar.cli`.
"""

from collections.abc import Mapping
from typing import Any

# Each limits validation; the first that is set does.
LIMITS = ("trainer.fast_dev_run", "trainer.overfit_batches", "trainer.limit_val_batches")


def part_validated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine which part of the validation split a run is validated on;
    empty if it is all of it.

    Args:
        settings: flat.
    """
    _, limit = validation_limit(settings)
    if limit is None or (isinstance(limit, float) and limit == 1):
        return {}
    keys = ("block_size", "val_batch_size")
    return {"limit_val_batches": limit} | {key: settings.get(f"data.{key}") for key in keys}


def validation_limit(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the setting that limits the batches of a validation, and their number or share."""
    *debugging, usual = LIMITS
    for key in debugging:
        if batches := settings.get(key):
            return key, 1 if batches is True else batches
    return usual, settings.get(usual)


def validated_on(settings: Mapping[str, Any]) -> str | None:
    """Return on what a run is validated, in words, if it is not all of the validation split."""
    if not part_validated(settings):
        return None
    key, limit = validation_limit(settings)
    return f"only on a part of the validation text ({key}={limit})"
