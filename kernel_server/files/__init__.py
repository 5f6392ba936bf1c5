"""Paths and transfers on the host's side: WORKDIR is opened once, every name is resolved beneath it."""
