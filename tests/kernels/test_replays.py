"""What a kernel has put out is sent again for a later server, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_server.kernels.outputs import Stream
from tests.kernels.test_bursts import running_kernel

pytestmark = pytest.mark.anyio

ERASES = """
print("shown", flush=True)
kernel = get_ipython().kernel
for end in (False, True):
    kernel.session.send(kernel.iopub_socket, "replay", {"end": end})
print("more")
"""


async def test_code_cannot_take_back_what_it_has_put_out(tmp_path: Path) -> None:
    """Ours: a server that has asked for nothing to be sent again does not begin anew; people read what the agent did."""
    async with running_kernel(tmp_path) as kernel, kernel.execute(ERASES) as execution:
        await execution.wait_over()
    assert "".join(item.text for item in execution.outputs.items if isinstance(item, Stream)) == "shown\nmore\n"
