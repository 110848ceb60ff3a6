"""Batches of windows of token ids."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litchar.data.module import TextDataModule, make_data_module

__all__ = ["TextDataModule", "make_data_module"]


def __getattr__(name: str) -> Any:
    """Import the data module when it is asked for: Lightning takes seconds to import, and what
    only scores a text needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from litchar.data import module

    return getattr(module, name)
