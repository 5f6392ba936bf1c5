"""The profile of hypothesis is loaded before the tests are defined."""

from __future__ import annotations

from tests.fuzz.profiles import load

load()
