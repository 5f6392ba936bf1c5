"""The program that runs inside the container: fork server and supervisor of kernels.

It shares no code with `kernel_server`, only the control protocol that `container/README.md` describes.
It needs Python >= 3.10 and ipykernel, and knows nothing of MCP, Docker or notebooks.
"""

# Raised whenever a message changes its meaning; both sides compare it in `hello`.
PROTOCOL = 3
