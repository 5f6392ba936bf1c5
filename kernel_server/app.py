"""The composition root: builds the MCP server from settings, and owns what lives as long as it does."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from mcp.server import MCPServer

from kernel_server import __version__
from kernel_server.config import Settings
from kernel_server.files.rules import Rules
from kernel_server.hosts.base import HostSettings, KernelHosts
from kernel_server.packages.requirements import Allowed
from kernel_server.presence import announced, servers
from kernel_server.secret import user_secret
from kernel_server.sessions.installs import open_installer
from kernel_server.sessions.registry import Limits, open_registry
from kernel_server.tasks import running
from kernel_server.tools import branching, code, files, listing, outputs, packages, resources, sessions, variables
from kernel_server.tools.boundary import KernelMCPServer
from kernel_server.tools.decoding import open_decoder
from kernel_server.tools.services import Services
from kernel_server.tools.stdio import end_soon
from kernel_server.transcripts.folder import IsInUse, JournalFolder

logger = logging.getLogger(__name__)

INSTRUCTIONS = """\
A real Python for you: IPython kernels in a locked-down container. Call init once, keep the session_id it returns and \
pass it to every call: variables, imports and files then stay from call to call. Without a session_id, run_code runs in \
a one-shot session. Files come in with cp_in (from WORKDIR_IN), go out with cp_out (to WORKDIR_OUT); write scripts with \
edit_file and run them with run_file. Plots come back as images. A last block of a result that begins with [kernel-server] is the \
server's own, and says what the cell changed; what comes before it is the code's. list_variables looks inside a session, also while code runs. checkpoint and rollback go back to an earlier state, \
branch_session tries several things from one. export_notebook keeps everything that ran."""

RENDERERS = 8  # threads
PARENT_SECONDS = 0.5
ANSWER_SECONDS = 0.1


def create_server(settings: Settings) -> KernelMCPServer:
    """The MCP server. It answers `initialize` and `tools/list` at once; the container starts with the first session."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[Services]) -> AsyncIterator[Services]:
        async with open_services(settings) as services, _exit_when_told(services):
            server.on_end_of_input = services.registry.prepare_to_leave
            yield services

    server = KernelMCPServer(
        "kernel-server", title="Kernel Server", version=__version__, instructions=INSTRUCTIONS, lifespan=lifespan
    )
    _configure_logging(settings.log_level)
    for module in (sessions, code, variables, outputs, branching, files, listing):
        module.register(server)
    packages.register(server, Allowed.only(settings.packages))
    sessions.register_endings(server)
    resources.register(server)
    return server


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """The running parts under the tools; all sessions and the container end with the block."""
    hosts = _make_hosts(settings)
    limits = Limits(
        settings.session_ttl,
        settings.session_max,
        settings.pool,
        host_settings(settings).per_host,
        keep=settings.on_exit == "keep",
        checkpoints=settings.checkpoints,
        automatic_checkpoints=settings.auto_checkpoints,
        notebook_ttl=settings.notebook_ttl,
    )
    # Announced first, and so withdrawn last: sessions still end in between.
    with announced(settings.state_dir / "servers", settings.engine) as announce, open_decoder() as decoder:
        async with (
            open_registry(hosts, limits, _journals(settings.state_dir, hosts)) as registry,
            open_installer(
                Allowed.only(settings.packages), settings.state_dir / "packages", settings.ca_file
            ) as installer,
        ):
            registry.on_change = lambda: announce([session.session_id for session in registry.sessions])
            registry.on_change()  # some may have been taken over by now
            yield Services(
                registry=registry,
                installer=installer,
                input_folder=settings.input_folder,
                output_folder=settings.output_folder,
                timeout=settings.timeout,
                wait=settings.wait,
                output_bytes=settings.output_bytes,
                rules=Rules(settings.out_files == "any", user_secret(settings.state_dir)),
                decoder=decoder,
                renderers=anyio.CapacityLimiter(RENDERERS),
            )


def host_settings(settings: Settings) -> HostSettings:
    """The slice of the settings that kernel hosts get."""
    per_host = settings.sessions_per_container if settings.engine == "docker" else 0
    return HostSettings(
        image=settings.image,
        preload=settings.preload_modules,
        session_max=per_host or settings.session_max + settings.pool,
        per_host=per_host,
        memory=settings.memory,
        session_memory=settings.session_memory,
        workspace_size=settings.workspace_size,
        cpus=settings.cpus,
        state_dir=settings.state_dir,
        ca_file=settings.ca_file,
        build_network=settings.build_network,
        isolation=settings.isolation,
        runtime=settings.runtime,
        network=settings.network,
        instance=settings.instance,
        keep_seconds=settings.session_ttl if settings.on_exit == "keep" else 0.0,
        fetch_image=settings.fetches_image,
    )


def _journals(state_dir: Path, hosts: KernelHosts) -> JournalFolder:
    """All servers with the same state folder share their journals."""

    def look() -> IsInUse:
        found = servers(state_dir / "servers")
        unknown = any(server.sessions is None for server in found)  # one of another version: any may be its
        there = {session_id for server in found for session_id in server.sessions or ()}
        return lambda session_id: unknown or session_id in there or bool(hosts.whereabouts(session_id))

    return JournalFolder(state_dir / "journals", look)


def _make_hosts(settings: Settings) -> KernelHosts:
    if settings.engine == "local":
        from kernel_server.hosts.local import LocalHosts

        return LocalHosts(host_settings(settings))
    from kernel_server.hosts.docker import DockerHosts

    return DockerHosts(host_settings(settings))


@asynccontextmanager
async def _exit_when_told(services: Services) -> AsyncIterator[None]:
    """Ends the process on SIGTERM and SIGINT, which the SDK would not survive or not heed, and with its parent.

    The client that started it may be gone while somebody else still holds the other end of stdin.
    """

    async def wait_for_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                await leave(signal.Signals(number).name, 128 + number)

    async def wait_for_parent() -> None:
        parent = os.getppid()
        while os.getppid() == parent:  # noqa: ASYNC110 - nobody sets an event
            await anyio.sleep(PARENT_SECONDS)
        await leave("the process that had started it is gone", 1)

    async def leave(why: str, code: int) -> None:
        logger.info("the server ends: %s", why)
        end_soon(code)
        with anyio.CancelScope(shield=True):
            await services.registry.leave()
            await anyio.sleep(ANSWER_SECONDS)  # calls in flight are told
        logging.shutdown()
        os._exit(code)

    async with running(wait_for_signal, wait_for_parent):
        yield


def _configure_logging(level: str) -> None:
    """Plain lines on stderr; stdout may be the MCP wire. The SDK's own handler draws boxes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("kernel_server").setLevel(level)
