"""A session's life: one kernel with its workspace and transcript; the registry that makes and ends them."""
