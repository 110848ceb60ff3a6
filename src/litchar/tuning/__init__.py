"""Hyperparameter search: many runs that look for the settings with the lowest validation loss."""

import importlib

from litchar.errors import extra

with extra("tune", needed_for="scripts/tune.py"):
    for module in ("optuna", "plotly"):  # fail now rather than at the report
        importlib.import_module(module)
