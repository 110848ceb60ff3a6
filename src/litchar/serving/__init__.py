"""A model behind a port: the OpenAI completions protocol, and a playground for the browser."""
