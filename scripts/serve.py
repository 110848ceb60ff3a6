"""Serve a trained model: `python scripts/serve.py checkpoint=latest`."""

from litchar.cli import hydra_main

if __name__ == "__main__":
    hydra_main(__file__, "serve", "litchar.serving.serve:run")
