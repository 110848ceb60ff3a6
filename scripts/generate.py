"""Generate text with a trained model: `python scripts/generate.py prompt="Once "`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "generate", "litchar.generation.run:run")
