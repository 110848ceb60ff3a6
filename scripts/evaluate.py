"""Score a text with a trained model: `python scripts/evaluate.py split=val`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "evaluate", "litchar.analysis.evaluate:run")
