"""checkpoint where kernels have ipykernel 6, whose messages take another way through the process."""

from __future__ import annotations

import sys

import pytest

from tests.driving import Kit

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="local kernels have ipykernel 7 here: see test_branching")
async def test_old_kernels_say_so(local_kit: Kit) -> None:
    """Issue 7, refuse: the error says what is needed, and the session goes on."""
    async with local_kit.session() as session:
        refused = await session.call("checkpoint")
        assert refused.is_error
        assert "Python 3.11" in refused.text
        assert await session.value("1") == "1"
