"""The documented entry: `python server.py --WORKDIR_IN A --WORKDIR_OUT B`, `mcp dev server.py`, `mcp run server.py`."""

import sys

if __name__ == "__main__":
    from kernel_server.cli import main

    sys.exit(main())

# `mcp dev` and `mcp run` import this file with an argv of their own: settings come from the environment and `.env`.
from kernel_server.app import create_server
from kernel_server.config import load_settings
from kernel_server.errors import ConfigurationError

try:
    mcp = create_server(load_settings())
except ConfigurationError as error:
    sys.exit(f"kernel-server: {error}")
