"""Records in the run folder that another version wrote, or that are damaged: a server starts, and says what it could not resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel_server.hosts.controlled import find_session
from tests.faults.servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

Change = Callable[[dict[str, Any]], Any]
ORIGIN = {"session_id": "0" * 32, "execution_count": 1}

# Changes that a newer version may make, or an older one has not made: the session goes on.
READABLE: dict[str, Change] = {
    "field of a checkpoint": lambda record: record["checkpoints"][0].update(new=1),
    "field of the origin": lambda record: record.update(origin={**ORIGIN, "new": [1]}),
    "no checkpoints": lambda record: record.pop("checkpoints"),
}
# What cannot be read of a checkpoint costs that.
PARTLY_READABLE: dict[str, Change] = {
    "checkpoint without its key": lambda record: record["checkpoints"][0].pop("key"),
    "checkpoint of another kind": lambda record: record["checkpoints"][0].update(name=7),
    "checkpoint of another name": lambda record: record["checkpoints"][0].update(name="cx"),
    "text for a checkpoint": lambda record: record.update(checkpoints=["c1"]),
}
UNREADABLE: dict[str, Change] = {
    "origin of another form": lambda record: record.update(origin={"parent": "x"}),
    "origin that is a text": lambda record: record.update(origin="x"),
    "number of checkpoints": lambda record: record.update(checkpoints=5),
    "text for a number": lambda record: record.update(generation="1"),
    "nothing for a time": lambda record: record.update(begun=None),
    "truth for a number": lambda record: record.update(submitted=True),
    "kernel without connection": lambda record: record["launched"].update(connection={}),
    "kernel with a list for a connection": lambda record: record["launched"].update(connection=[1]),
    "no kernel": lambda record: record.pop("launched"),
    "other id": lambda record: record.update(session_id="1" * 32),
    "nothing": lambda record: record.clear(),
}


def change(path: Path, how: Change) -> None:
    record = json.loads(path.read_text().splitlines()[0])
    how(record)
    path.write_text(json.dumps(record) + "\n")


async def test_server_starts_whatever_the_records_are(servers: Servers) -> None:
    """Ours: a field that was added ended each new server, until the container had ended by itself."""
    first = await servers.start()
    changes = [*READABLE.items(), *PARTLY_READABLE.items(), *UNREADABLE.items()]
    ids = {}
    for name, _ in changes:
        ids[name] = await first.begin("x = 41")
        assert not (await first.call("checkpoint", session_id=ids[name])).is_error
    torn = await first.begin("x = 41")
    good = await first.begin("x = 41")
    await first.kill()
    for name, how in changes:
        path = find_session(ids[name])
        assert path is not None
        change(path / f"session-{ids[name]}", how)
    outer = find_session(torn)
    assert outer is not None
    (outer / f"session-{torn}").write_bytes(b'{"session_id": "')

    second = await servers.start()
    assert await second.run(good, "x + 1") == "42", "the control"
    for name in READABLE:
        assert await second.run(ids[name], "x + 1") == "42", name
    for name in PARTLY_READABLE:
        text = await second.text("run_code", code="x + 1", session_id=ids[name])
        assert text.startswith("42"), f"{name}: {text}"
        assert "1 checkpoint of another version of the server cannot be used" in text, name
        assert "no checkpoints" in await second.text("rollback", session_id=ids[name])
    for name in [*UNREADABLE, ""]:
        lost = ids[name] if name else torn
        text = await second.text("run_code", code="x", session_id=lost)
        assert "could not be taken over: its record is of another version" in text, f"{name}: {text}"
        assert not (await second.call("export_notebook", session_id=lost)).is_error, "as that error says"
        assert lost in second.wire.stderr, "the log says so, too"
    listed = (await second.call("list_sessions")).raw.structured_content
    assert listed is not None
    assert len(listed["sessions"]) == 1 + len(READABLE) + len(PARTLY_READABLE)
