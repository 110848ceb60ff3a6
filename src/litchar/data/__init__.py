"""Batches of windows of token ids."""

from litchar.data.module import TextDataModule, make_data_module

__all__ = ["TextDataModule", "make_data_module"]
