"""Score a text without training: `python scripts/baselines.py data=text data.path=FILE`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "baselines", "litchar.analysis.baselines:run")
