"""The MCP surface: validate, call, render; no logic. A tool's docstring is what the model reads about it."""
