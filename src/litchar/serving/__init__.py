"""A model behind a port: the OpenAI completions protocol, and a playground for the browser."""

import importlib

from litchar.errors import extra

with extra("web", needed_for="scripts/serve.py, as scripts/playground.py,"):
    for module in ("fastapi", "uvicorn", "jinja2"):
        importlib.import_module(module)
