"""Serving a model over HTTP: an OpenAI-compatible completions server and a browser playground."""

from litchar.errors import extra

with extra("web", needed_for="litchar.serving"):
    import fastapi  # noqa: F401
    import jinja2  # noqa: F401
    import uvicorn  # noqa: F401
