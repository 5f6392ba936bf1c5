"""From where packages come: what pip is configured for on this machine, told to uv as well, which does not read that.

pip's configuration is the one that people and companies write: index, certificates, proxy, constraints. Where it names
no index, UV_DEFAULT_INDEX or UV_INDEX_URL counts. No name of an index is known here: without any, both programs know theirs.
"""

from __future__ import annotations

import ast
import os
import ssl
import sys
import time
from contextlib import suppress
from pathlib import Path

from kernel_server.errors import PackageError
from kernel_server.packages.programs import Bounds, run_program

CONFIG_BOUNDS = Bounds(30.0, 1 << 20)
SECTIONS = ("global", "install", "download", ":env:")  # a later one wins
# By pip's option: the variables that say the same to pip and to uv.
VARIABLES = {
    "index-url": ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    "extra-index-url": ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
    "find-links": ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    "no-index": ("PIP_NO_INDEX", "UV_NO_INDEX"),
    "constraint": ("PIP_CONSTRAINT", "UV_CONSTRAINT"),
    "trusted-host": ("PIP_TRUSTED_HOST", "UV_INSECURE_HOST"),
    "cert": ("PIP_CERT", "SSL_CERT_FILE"),
    "client-cert": ("PIP_CLIENT_CERT", "SSL_CLIENT_CERT"),
    "proxy": ("PIP_PROXY", "ALL_PROXY"),
}
OWN_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
# Of uv's own variables nothing else is taken over: one could allow what must not happen here, such as a build.
KEPT = ("UV_CACHE_DIR",)
RETRIES, TIMEOUT_SECONDS = 1, 20  # of a request: a machine without network is told as such, not waited for
FIXED = {
    "PIP_RETRIES": str(RETRIES),
    "PIP_DEFAULT_TIMEOUT": str(TIMEOUT_SECONDS),
    "PIP_NO_INPUT": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PIP_NO_COLOR": "1",
    "PYTHONSAFEPATH": "1",  # pip is a module, and what it fetches comes into the current folder
    "UV_HTTP_RETRIES": str(RETRIES),
    "UV_HTTP_TIMEOUT": str(TIMEOUT_SECONDS),
}
FALSE = {"0", "false", "no", "off"}
FRESH_SECONDS = 60.0


class Sources:
    """Knows what pip is configured for; asks it anew after a while, since that takes longer than to resolve."""

    def __init__(self, ca_file: Path | None) -> None:
        """Asks nothing yet.

        Args:
            ca_file: PEM file of the authorities to trust, where pip has none.
        """
        self._ca_file = ca_file
        self._told: dict[str, str] = {}
        self._asked: tuple[float, dict[str, str]] | None = None

    async def environment(self, folder: Path) -> dict[str, str]:
        """The environment in which pip and uv find what the user has told pip.

        Args:
            folder: an empty one.

        Raises:
            PackageError: pip cannot be run.
        """
        base = {name: value for name, value in os.environ.items() if not name.startswith("UV_") or name in KEPT}
        if self._asked is None or self._asked[1] != base or time.monotonic() - self._asked[0] > FRESH_SECONDS:
            self._told, self._asked = await _configured(folder, base), (time.monotonic(), base)
        told = dict(self._told)
        told.setdefault("index-url", next((os.environ[name] for name in OWN_INDEX if os.environ.get(name)), ""))
        told.setdefault("cert", str(self._ca_file or ssl.get_default_verify_paths().cafile or ""))
        return {**base, **FIXED, **_translated(told)}


def _translated(told: dict[str, str]) -> dict[str, str]:
    """What pip is told by options, as variables for both programs."""
    variables = {}
    for option, value in told.items():
        if not value or option not in VARIABLES or (option == "no-index" and value in FALSE):
            continue
        for_pip, for_uv = VARIABLES[option]
        words = " ".join(value.split())
        variables[for_pip] = words
        variables[for_uv] = words.replace(" ", ",") if option == "find-links" else words
    return variables


async def _configured(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """What pip is configured for, by option."""
    try:
        ended = await run_program(
            [sys.executable, "-m", "pip", "--no-color", "config", "list"],
            folder,
            {**environment, "PYTHONSAFEPATH": "1"},
            CONFIG_BOUNDS,
        )
    except OSError as error:
        raise PackageError(f"pip cannot be run on the server's machine: {error.strerror}. Try again.") from error
    if ended.exit_code or ended.stopped:
        raise PackageError(
            "pip does not run on the server's machine. Tell the user: `python -m pip config list` fails."
        )
    found: dict[str, dict[str, str]] = {}
    for line in ended.said.splitlines():
        key, equals, written = line.partition("=")
        section, _, option = key.rpartition(".")
        if equals and section in SECTIONS:
            with suppress(ValueError, SyntaxError):
                found.setdefault(section, {})[option] = str(ast.literal_eval(written))
    return {option: value for section in SECTIONS for option, value in found.get(section, {}).items()}
