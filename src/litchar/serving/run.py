"""What `scripts/serve.py` and `scripts/playground.py` run, if the extra `web` is installed."""

import importlib

from omegaconf import DictConfig

from litchar.errors import extra


def serve(config: DictConfig) -> None:
    """Answer OpenAI's completions protocol until a signal comes, see `serving.serve`."""
    _run("serve", config)


def playground(config: DictConfig) -> None:
    """Show the playground until a signal comes, see `serving.playground`."""
    _run("playground", config)


def _run(module: str, config: DictConfig) -> None:
    with extra("web", needed_for=f"scripts/{module}.py"):
        run = importlib.import_module(f"litchar.serving.{module}").run
    run(config)
