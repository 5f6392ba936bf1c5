"""`python -m kernel_server` is `kernel-server`."""

import sys

# `python -m` puts the current folder first on the path, where sessions may have put files (Python 3.11: `python -P`).
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from kernel_server.cli import main

sys.exit(main())
