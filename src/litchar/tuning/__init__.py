"""Tuning: many runs that search for the settings with the lowest validation loss."""

from litchar.text.formats import extra

for module in ("optuna", "plotly", "matplotlib"):  # now rather than when a report is due
    extra(module, needed_for="scripts/tune.py", install='-e ".[tune]"')
