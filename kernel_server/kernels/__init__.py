"""The Jupyter messaging protocol: the only part that uses jupyter_client and ZMQ."""
