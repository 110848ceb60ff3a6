"""Write in a browser with trained models: `python scripts/playground.py checkpoint=latest`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "playground", "litchar.serving.playground:run")
