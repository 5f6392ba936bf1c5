"""The disk of the workspaces has no room left: sessions go on, and whoever wants another one is told why there is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driving import serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make a small file system"),
]

INODES = 400
FILL = """
import os
made = 0
try:
    while True:
        os.close(os.open(f'f{made}', os.O_CREAT))
        made += 1
except OSError as error:
    said = error.strerror
made > 10, said
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system with few inodes, in which local kernels have their workspaces."""
    folder = tmp_path / "s"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=64m,nr_inodes={INODES},mode=700", "tmpfs", folder], check=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def test_sessions_live_on_without_an_inode(small: Path, tmp_path: Path) -> None:
    """Finding R1: the next `init` ended kernel_host, and every session with it; empty files take no blocks."""
    async with serving(tmp_path / "server", "local", PY_EXEC_POOL="0", PY_EXEC_PRELOAD="none") as kit:
        async with kit.session() as session:
            assert (small.stat().st_dev) != tmp_path.stat().st_dev
            assert await session.value(FILL) == "(True, 'No space left on device')", "the control"
            for _ in range(3):
                reply = await kit.call("init")
                assert reply.is_error, reply.text
            assert await session.value("made > 10") == "True", "it has lost nothing"
            await session.value("for number in range(made): os.unlink(f'f{number}')")
            async with kit.session() as later:
                assert await later.value("1 + 1") == "2"
