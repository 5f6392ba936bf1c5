"""Packages for sessions that have no network: resolved and fetched here as wheels. No code of a package ever runs here."""
