"""`kernel-server doctor`: looks at everything that a server needs, and says how to mend what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from itertools import chain

from kernel_server.approval import Origin
from kernel_server.care.check import Check
from kernel_server.care.engine import check_engine, connected, unreachable
from kernel_server.care.leftovers import Leftover, Stranger, in_engine, in_folders
from kernel_server.care.machine import check_machine
from kernel_server.config import Settings
from kernel_server.errors import EngineError, EngineUnavailable
from kernel_server.text import counted, one_line

SHOWN_STRANGERS = 3
DEFAULTS = Origin()


def doctor(settings: Settings, origin: Origin = DEFAULTS) -> int:
    """Prints each finding as it is made. Returns the exit code: 1 if something does not work.

    Nothing is started or changed, and it ends in bounded time whether there is an engine or not.

    Args:
        origin: what a file has to do with the settings.
    """
    failed = False
    for check in chain(_settings(origin), _checks(settings)):
        print(check, flush=True)
        failed = failed or check.level == "FAIL"
    return int(failed)


def _settings(origin: Origin) -> Iterator[Check]:
    if origin.file is None:
        return
    where = str(origin.file.path)
    for name, value in origin.taken.items():
        yield Check("ok", "settings", f"{name}={one_line(value)} comes from {where}")
    if origin.file.refused:
        yield Check("warn", "settings", f"{where} {origin.file.refused}: it is not used", origin.remedy)
    for name, value in origin.ignored.items():
        finding = f"{name}={one_line(value)} of {where} is not used: nobody has approved that file"
        yield Check("warn", "settings", finding, origin.remedy)


def _checks(settings: Settings) -> Iterator[Check]:
    yield from check_machine(settings)
    found: list[Leftover | Stranger] = [*in_folders()]
    if settings.engine == "local":
        yield from _local()
    else:
        try:
            with connected() as engine:
                yield from check_engine(engine, settings)
                found.extend(in_engine(engine, settings.state_dir))
        except EngineUnavailable as error:
            yield unreachable(error)
        except EngineError as error:
            yield Check("FAIL", "engine", str(error))
    yield from _leftovers(found)


def _local() -> Iterator[Check]:
    finding = "PY_EXEC_ENGINE=local: code runs as your user on this machine, without isolation"
    yield Check("warn", "engine", finding, "Unset it, for kernels in a container.")
    try:
        yield Check("ok", "ipykernel", metadata.version("ipykernel"))
    except metadata.PackageNotFoundError:
        yield Check("FAIL", "ipykernel", "is missing, no kernel starts", "`pip install 'kernel-server[local]'`.")


def _leftovers(found: list[Leftover | Stranger]) -> Iterator[Check]:
    kinds = [item.kind for item in found if isinstance(item, Leftover) and not item.kept]
    if kinds:
        finding = ", ".join(counted(kinds.count(kind), kind) for kind in dict.fromkeys(kinds))
        yield Check("warn", "leftovers", finding, "`kernel-server clean` shows them, and removes them.")
    else:
        yield Check("ok", "leftovers", "none")
    strangers = [item for item in found if isinstance(item, Stranger)]
    if strangers:
        finding = (
            f"{counted(len(strangers), 'thing')} of servers elsewhere, or left by them, such as {strangers[0].name}"
        )
        commands = "; ".join(f"`{stranger.command}`" for stranger in strangers[:SHOWN_STRANGERS])
        mend = f"If no server runs with another user, PY_EXEC_STATE_DIR or /tmp: {commands}."
        yield Check("ok", "strangers", finding, mend)
