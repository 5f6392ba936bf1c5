"""A shell that was made before the fork is as one that its kernel has made. Real kernels."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.driving import Handle, eventually, serving

pytestmark = pytest.mark.anyio

# What InteractiveShell.__init__ takes from its process or leaves there.
STATE = """
import atexit, os, sys, warnings
ip = get_ipython()
before = atexit._ncallbacks()
atexit.unregister(ip.atexit_operations)
at_exit = before - atexit._ncallbacks()
atexit.register(ip.atexit_operations)
del before
state = [ip.profile_dir.location, ip.ipython_dir, ip.starting_dir, ip.home_dir, ip.pictures.workspace, ip.parent, ip.kernel]
state += [ip.colors, getattr(ip, 'enable_tip', None), ip.history_manager.enabled, ip.execution_count, 'IPKernelApp' in ip.config]
state += [sys.modules['__main__'] is ip.user_module, __name__, ip.user_ns is globals(), sorted(globals())]
state += [sys.excepthook, sys.displayhook, sys.ps1, sys.path, ip._orig_sys_module_state, ip._orig_sys_modules_main_mod]
state += [os.environ['TERM'], os.environ['PAGER'], [type(one).__name__ for one in ip.configurables], ip.stdin_encoding]
state += [sorted(ip.magics_manager.lsmagic()['line']), sorted(ip.magics_manager.lsmagic()['cell'])]
state += [[str(one) for one in warnings.filters], at_exit, ip.db, ip.tempfiles, ip.dir_stack, ip.events.callbacks]
print(*state, sep='\\n')
"""
MADE_AHEAD = "get_ipython().config is not get_ipython().kernel.config"
POSSIBLE = isinstance(vars(InteractiveShell).get("db"), property)  # see SessionShell.make_ahead


async def test_kernel_with_a_shell_made_ahead_is_as_one_that_made_its_own(tmp_path: Path) -> None:
    """Ours: the first kernel of a kernel host makes its own; there are others when the host has had time."""
    async with serving(tmp_path, "local", PY_EXEC_POOL="0") as kit:
        first = await _looked(await kit.init())
        assert first.pop() == "False"
        found: list[str] = []

        async def made_ahead() -> bool:
            async with kit.session() as session:  # as many as it takes: there can be 32 at a time
                found[:] = await _looked(session)
            return bool(found.pop() == str(POSSIBLE))

        await eventually(made_ahead)
        assert found == first


async def test_a_shell_made_ahead_does_what_shells_do(tmp_path: Path) -> None:
    """IPython: `%colors`, `%%bash`, `%pwd`, pickle of what is defined in a cell, a traceback, the number of a cell."""
    async with serving(tmp_path, "local", PY_EXEC_POOL="0") as kit:
        await kit.init()

        async def made_ahead() -> bool:
            session = await kit.init()
            found[:] = [session]
            if await session.value(MADE_AHEAD) == str(POSSIBLE):
                return True
            await session.call("close_session")  # there can be 32 at a time
            return False

        found: list[Handle] = []
        await eventually(made_ahead)
        (session,) = found
        assert await session.value("%colors linux\nget_ipython().colors.lower()") == "'linux'"
        assert await session.value("%%bash\necho $HOME") == session.workspace
        assert await session.value("%pwd") == repr(session.workspace)
        code = "import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A"
        assert await session.value(code) == "True"
        assert "ZeroDivisionError" in (await session.run("1 / 0")).text
        assert await session.value("'echo $HOME' in In[3], len(In)") == "(True, 8)"


async def test_configuration_that_a_session_has_made_counts_in_its_next_kernel(tmp_path: Path) -> None:
    """IPython: configuration and startup files lie in the profile."""
    async with serving(tmp_path, "local", PY_EXEC_POOL="0") as kit:
        session = await kit.init()
        code = """
            import os, pathlib
            profile = pathlib.Path(get_ipython().profile_dir.location)
            _ = (profile / 'ipython_config.py').write_text("c.InteractiveShell.ast_node_interactivity = 'all'")
            (profile / 'startup').mkdir(exist_ok=True)
            _ = (profile / 'startup' / 'first.py').write_text('begun = 1')
            os._exit(1)
        """
        assert (await session.run(inspect.cleandoc(code))).status == "died"
        assert await session.value("begun\nget_ipython().ast_node_interactivity") == "1\n'all'"


async def _looked(session: Handle) -> list[str]:
    """Lines, without what is different for each process; the last one tells whether its shell was made ahead."""
    text = await session.value(f"{STATE}print({MADE_AHEAD})")
    return re.sub(r"0x[0-9a-f]+|[0-9a-f]{32}|private/[0-9]+", "…", text).splitlines()
