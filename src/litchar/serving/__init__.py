"""A model behind a port: the OpenAI completions protocol, and a playground for the browser."""

from litchar.errors import extra

with extra("web", needed_for="litchar.serving"):
    import fastapi  # noqa: F401
    import jinja2  # noqa: F401
    import uvicorn  # noqa: F401
