"""The documented entry: `python server.py --WORKDIR_IN A --WORKDIR_OUT B`, `mcp dev server.py`, `mcp run server.py`."""

import os
import sys

import kernel_server  # noqa: F401 - from beside this file; all else is looked for here last, where sessions may put files

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
    sys.path.append(sys.path.pop(0))

if __name__ == "__main__":
    from kernel_server.cli import main

    sys.exit(main())

# `mcp dev` and `mcp run` import this file with an argv of their own: settings come from the environment and `.env`.
from kernel_server.app import create_server
from kernel_server.cli import say_origin
from kernel_server.config import load_configuration
from kernel_server.errors import ConfigurationError

try:
    loaded = load_configuration()
    say_origin(loaded)
    mcp = create_server(loaded.settings)
except ConfigurationError as error:
    sys.exit(f"kernel-server: {error}")
