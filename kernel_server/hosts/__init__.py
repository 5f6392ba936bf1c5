"""Where kernels live: `docker` (the default) or `local`, behind the protocol in `base.py`."""
