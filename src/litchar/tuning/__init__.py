"""Tuning: many runs that search for the settings with the lowest validation loss."""
