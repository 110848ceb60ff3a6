"""Analysis of texts, models and runs."""
