"""An MCP server that gives LLM agents a real Python, one IPython kernel per session."""

__version__ = "0.1.0"
