"""Start: `python -s <this folder>` with the configuration as JSON in KERNEL_HOST_CONFIG."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python put this folder itself on the path; a session's `import server` must never find our modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from kernel_host.server import main

    del sys.path[0]
    main()
