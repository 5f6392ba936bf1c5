"""The commands of `kernel-server`; `python server.py` is `kernel-server serve`."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from kernel_server import __version__
from kernel_server.config import (
    Configuration,
    Settings,
    describe_settings,
    find_env_file,
    given_in_environment,
    load_configuration,
)
from kernel_server.errors import ConfigurationError, KernelServerError
from kernel_server.text import one_line

COMMANDS = {
    "serve": "serve MCP on stdin and stdout (what an MCP client starts); the default",
    "dev": "open the MCP Inspector on this server, with these settings",
    "build": "build the image now, so that the first session need not wait for it",
    "doctor": "look at engine, image, versions, folders and disk, and say how to mend what is wrong; starts nothing",
    "sessions": "list the sessions of all servers of this user, and those that have ended, while they can be exported",
    "clean": "remove what servers left behind that are gone, after showing it",
    "trust": "approve the .env of the current folder as it is now, so that all of its settings count",
}
# Named by its major version: with an older Node.js, npx would silently take the old Inspector 0.15.
INSPECTOR = "@modelcontextprotocol/inspector@2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; `serve` if none is named. Returns the exit code: 2 for bad configuration, 1 for other errors."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0] not in COMMANDS and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "serve")
    options = vars(_parser().parse_args(given))
    command = options.pop("command")
    leftovers, yes = options.pop("leftovers", []), options.pop("yes", False)
    env_file = options.pop("env_file") or ""
    named = {name: value for name, value in options.items() if value is not None}
    try:
        loaded = load_configuration(named, env_file)
        if command == "trust":
            return _trust(loaded.settings, env_file)
        if command != "doctor":  # which shows them among all else
            say_origin(loaded)
        match command:
            case "dev":
                _dev(named, env_file)
            case "build":
                return _build(loaded.settings)
            case "doctor" | "sessions" | "clean":
                return _care(command, loaded, leftovers, yes=yes)
            case _:
                return _serve(loaded.settings)
    except ConfigurationError as error:
        print(f"kernel-server: {error}", file=sys.stderr)
        return 2
    except KernelServerError as error:
        print(f"kernel-server: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kernel-server", description="An MCP server that gives LLM agents a real Python, in a container."
    )
    parser.add_argument("--version", action="version", version=f"kernel-server {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "clean":
            command.add_argument("leftovers", nargs="*", metavar="NAME", help="only these, by the names that it shows")
            command.add_argument("--yes", action="store_true", help="do not ask")
        command.add_argument("--env-file", metavar="FILE", help="approve this file, and read it in place of .env")
        for setting, default, description in describe_settings():
            shown = f"{description} [{default}]" if default else description
            command.add_argument(
                f"--{setting}",
                f"--{setting.lower().replace('_', '-')}",
                dest=setting,
                metavar="VALUE",
                help=shown.replace("%", "%%"),
            )
    return parser


def say_origin(loaded: Configuration) -> None:
    """Tells the person who started this, on stderr, what a file has to do with the settings."""
    for line in loaded.origin.lines():
        print(f"kernel-server: {line}", file=sys.stderr, flush=True)


def _serve(settings: Settings) -> int:
    # Imports make a lot of objects that stay; to look for garbage among them takes a seventh of the time.
    gc.disable()
    from kernel_server.app import create_server

    _warn_about_folders(settings)
    server = create_server(settings)
    gc.freeze()
    gc.enable()
    server.run("stdio")
    return 0


def _warn_about_folders(settings: Settings) -> None:
    """The tools say it again to the model; here it is for the person who started the server."""
    for name, folder in (("WORKDIR_IN", settings.input_folder), ("WORKDIR_OUT", settings.output_folder)):
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            print(f"kernel-server: warning: {name} {folder} {what}; copying will fail until it does", file=sys.stderr)


def _dev(named: dict[str, str], env_file: str) -> NoReturn:
    """Starts the Inspector, and through it this server with the same settings: it passes no environment on by itself."""
    npx = shutil.which("npx")
    if npx is None:
        sys.exit("kernel-server dev: npx was not found; install Node.js 22.19 or newer")
    # Without it, `python -m` would look for modules in the current folder, where sessions may have put files.
    environment = {**given_in_environment(), "PYTHONSAFEPATH": "1"}
    variables = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
    settings = [part for name, value in named.items() for part in (f"--{name}", value)]
    settings += ["--env-file", os.path.abspath(env_file)] if env_file else []
    # Arguments of the server stand behind `--`, or the Inspector would take them for its own.
    command = [npx, INSPECTOR, *variables, sys.executable, "--", "-m", "kernel_server", "serve", *settings]
    os.execve(npx, command, {**os.environ, "npm_config_yes": "true"})  # noqa: S606 - no shell wanted


def _build(settings: Settings) -> int:
    from kernel_server.app import host_settings
    from kernel_server.hosts.docker import build_image

    print(f"Ready: {build_image(host_settings(settings), lambda line: print(line, flush=True))}")
    return 0


def _trust(settings: Settings, env_file: str) -> int:
    file = find_env_file(env_file)
    if file is None or file.refused:
        why = file.refused if file else "is not there"
        print(f"kernel-server: nothing is approved: {file.path if file else '.env'} {why}", file=sys.stderr)
        return 1
    for name, value in file.values(references=False).items():
        print(f"{name}={one_line(value)}")
    try:
        file.trust(settings.state_dir)
    except OSError as error:
        print(f"kernel-server: {settings.state_dir} cannot remember it: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{file.path} is approved as it is now; when it changes, approve it again.")
    return 0


def _care(command: str, loaded: Configuration, leftovers: Sequence[str], *, yes: bool) -> int:
    from kernel_server.care.clean import clean
    from kernel_server.care.doctor import doctor
    from kernel_server.care.sessions import sessions

    settings = loaded.settings
    try:
        match command:
            case "doctor":
                return doctor(settings, loaded.origin)
            case "sessions":
                return sessions(settings)
            case _:
                return clean(settings, leftovers, yes=yes)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
