"""Search for the best settings: `python scripts/tune.py tune=default tune.name=t1`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "tune", "litchar.tuning.run:run")
