"""Tuning: many runs that search for the settings with the lowest validation loss."""

import importlib

from litchar.errors import extra

with extra("tune", needed_for="scripts/tune.py"):
    for module in ("optuna", "plotly"):  # now rather than when a report is due
        importlib.import_module(module)
