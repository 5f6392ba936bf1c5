"""Settings: command line, then environment, then `.env` in the current folder, then defaults.

The only module that reads the environment. The README table and `.env.example` are compared with `Settings` by a test.

A `.env` that the user has not approved may have come with a clone, or out of a session: it can narrow what sessions may
do, and never widen it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kernel_server.approval import Origin, narrows
from kernel_server.envfile import REFERENCE, EnvFile, find_file, named_file
from kernel_server.errors import ConfigurationError
from kernel_server.hosts.images import DEFAULT_IMAGE
from kernel_server.packages.requirements import check_names

# Variables by which users tell other programs of a private CA; the first that is set counts.
CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
# Variables by which they tell every Docker client where the engine is.
ENGINE_VARIABLES = ("DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
# A name or IPv4 address, with a port if it is not a usual one; `*.` stands for all names below.
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[0-9]{1,5})?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: object) -> object:
    """`512m`, `4g`, `100k`, `1048576` → bytes; what is not such a text is left to pydantic."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _UNITS[match[2].lower()])
    return value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _path(value: object) -> object:
    return os.path.expanduser(value) if isinstance(value, str) else value


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


def _network(value: str) -> str:
    text = value.strip().lower()
    hosts = [host.strip() for host in text.removeprefix("allow:").split(",")] if text.startswith("allow:") else []
    if (text in ("none", "bridge") or text.startswith("allow:")) and all(map(_HOST.fullmatch, filter(None, hosts))):
        return f"allow:{','.join(filter(None, hosts))}" if text.startswith("allow:") else text
    raise ValueError("no such network")


Bytes = Annotated[int, BeforeValidator(parse_size)]
Folder = Annotated[Path, BeforeValidator(_path)]
SIZE_FORM = "a size such as 512m or 4g"


def _setting(name: str, default: Any, description: str, form: str, **bounds: Any) -> Any:
    return Field(default, validation_alias=name, description=description, json_schema_extra={"form": form}, **bounds)


class Settings(BaseSettings):
    """Every setting of the server; frozen. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    workdir: Folder = _setting(
        "WORKDIR", Path(), "Default of the two below; without it, the current folder.", "a folder"
    )
    workdir_in: Folder | None = _setting(
        "WORKDIR_IN", None, "The only folder of the host that `cp_in` reads.", "a folder"
    )
    workdir_out: Folder | None = _setting(
        "WORKDIR_OUT", None, "The only folder of the host that `cp_out` and `export_notebook` write to.", "a folder"
    )
    out_files: Literal["plain", "any"] = _setting(
        "PY_EXEC_OUT_FILES",
        "plain",
        "What `cp_out` and `export_notebook` may write: `plain`: no name that begins with a dot, nothing below such a folder, and "
        "nothing executable; `any`: these, too, so that sessions can write `.git/hooks`, say.",
        "plain or any",
    )
    image: str = _setting(
        "DOCKER_IMAGE",
        DEFAULT_IMAGE,
        "Any image with Python 3.10 or newer; the kernel layer is built on top of it once.",
        "an image reference such as python:3.13-slim",
        min_length=1,
    )
    engine: Literal["docker", "local"] = _setting(
        "PY_EXEC_ENGINE",
        "docker",
        "Where kernels run: `docker`, or `local`: plain processes of your user WITHOUT ISOLATION, for development.",
        "docker or local",
    )
    session_ttl: float = _setting(
        "PY_EXEC_SESSION_TTL",
        600.0,
        "Seconds after its last use until a session ends; a running cell is use.",
        "seconds above 0",
        gt=0,
    )
    session_max: int = _setting(
        "PY_EXEC_SESSION_MAX",
        32,
        "How many sessions there may be at a time.",
        "a whole number from 1 to 500",
        ge=1,
        le=500,
    )
    on_exit: Literal["keep", "remove"] = _setting(
        "PY_EXEC_ON_EXIT",
        "keep",
        "What becomes of the sessions when the server ends or is killed: `keep` leaves them, with what runs in them, to the "
        "next server with the same settings, for as long as PY_EXEC_SESSION_TTL; `remove` ends them.",
        "keep or remove",
    )
    pool: int = _setting(
        "PY_EXEC_POOL",
        2,
        "How many spare sessions stand ready for `init`, beside those in use; fewer while memory is short; 0 is none.",
        "a whole number from 0 to 50",
        ge=0,
        le=50,
    )
    checkpoints: int = _setting(
        "PY_EXEC_CHECKPOINTS",
        8,
        "How many checkpoints a session keeps; a new one takes the place of the oldest.",
        "a whole number from 1 to 30",
        ge=1,
        le=30,
    )
    auto_checkpoints: int = _setting(
        "PY_EXEC_AUTO_CHECKPOINTS",
        0,
        "How many cells a session can go back without having asked for a checkpoint: one is made before each; 0 is none.",
        "a whole number from 0 to 30",
        ge=0,
        le=30,
    )
    sessions_per_container: int = _setting(
        "PY_EXEC_SESSIONS_PER_CONTAINER",
        0,
        "How many sessions share a container; 0 is all of them, 1 gives each its own (safer, with more memory for each).",
        "a whole number from 0 to 500",
        ge=0,
        le=500,
    )
    timeout: float = _setting(
        "PY_EXEC_TIMEOUT",
        3600.0,
        "Seconds until a cell is interrupted, unless the call says otherwise; 0 is never.",
        "seconds, 0 or more",
        ge=0,
    )
    wait: float = _setting(
        "PY_EXEC_WAIT",
        45.0,
        "Seconds after which a call that runs code returns what there is so far, while the code runs on; "
        "clients give up after 60.",
        "seconds above 0",
        gt=0,
    )
    output_bytes: Bytes = _setting(
        "PY_EXEC_OUTPUT_BYTES",
        10_000,
        "Most bytes of text in one result; more is cut in the middle. The notebook keeps more.",
        "a size of 1000 bytes or more, such as 10k",
        ge=1000,
    )
    memory: Bytes = _setting("PY_EXEC_MEMORY", 4 << 30, "Memory limit of a container; 0 is none.", SIZE_FORM, ge=0)
    session_memory: Bytes = _setting(
        "PY_EXEC_SESSION_MEMORY",
        2 << 30,
        "Memory limit of each process of a session; beyond it is a MemoryError; 0 is none.",
        SIZE_FORM,
        ge=0,
    )
    workspace_size: Bytes = _setting(
        "PY_EXEC_WORKSPACE_SIZE",
        8 << 30,
        "How much disk the files of a session may take; 0 is no limit.",
        SIZE_FORM,
        ge=0,
    )
    cpus: float = _setting("PY_EXEC_CPUS", 0.0, "CPUs of a container; 0 is all.", "a number, 0 or more", ge=0)
    network: Annotated[str, AfterValidator(_network)] = _setting(
        "PY_EXEC_NETWORK",
        "none",
        "Network of sessions: `none`; `allow:` with hosts, such as `allow:pypi.org,*.example.org,example.org:8080`: only these, "
        "by an HTTP proxy; `bridge`: that of Docker's default bridge, with everything that can be reached from there.",
        "none, bridge, or allow: with names of hosts and commas between them",
    )
    isolation: Literal["standard", "strict"] = _setting(
        "PY_EXEC_ISOLATION",
        "standard",
        "`standard` does with what the machine has, and says what is missing; `strict` starts no session where a layer of "
        "isolation is missing.",
        "standard or strict",
    )
    runtime: str = _setting(
        "PY_EXEC_RUNTIME",
        "",
        "Runtime of containers, such as `runsc` (gVisor) or `kata-runtime`, as the engine knows it; empty is its default.",
        "a runtime that `docker info` lists",
        pattern=r"[A-Za-z0-9_.\-]*",
    )
    preload: Annotated[list[str], NoDecode, BeforeValidator(_split)] = _setting(  # NoDecode: no JSON in the environment
        "PY_EXEC_PRELOAD",
        "numpy,pandas,matplotlib.pyplot",
        "Modules imported once, before any kernel is forked; those the image lacks are passed over.",
        "module names with commas between them, or none",
    )
    packages: Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(check_names)] = _setting(
        "PY_EXEC_PACKAGES",
        "any",
        "What `install_packages` may install: `any`, `none` (there is no such tool then), or names with commas between them: "
        "these and what they need.",
        "any, none, or names of packages with commas between them",
    )
    state_dir: Folder = _setting(
        "PY_EXEC_STATE_DIR",
        Path(platformdirs.user_state_dir("kernel-server")),
        "Where the server keeps what ran in each session, for `export_notebook`, and its locks.",
        "a folder",
    )
    notebook_ttl: float = _setting(
        "PY_EXEC_NOTEBOOK_TTL",
        7 * 24 * 3600.0,
        "Seconds for which what ran in a session can be exported after its last cell, also when it has ended.",
        "seconds above 0",
        gt=0,
    )
    ca_bundle: Annotated[Folder, AfterValidator(_existing_file)] | None = _setting(
        "PY_EXEC_CA_BUNDLE",
        None,
        "PEM file of the authorities to trust while the image is built and by `pip` inside, for networks that inspect TLS."
        f" Without it, the first file that {', '.join(CA_VARIABLES)} names.",
        "a file that exists; there is no such file",
    )
    build_network: str = _setting(
        "PY_EXEC_BUILD_NETWORK",
        "",
        "Network of the image build, such as `host`; empty tries the engine's default, then `host`.",
        "default, host or the name of a network",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting(
        "PY_EXEC_LOG_LEVEL", "INFO", "What is logged on stderr.", "DEBUG, INFO, WARNING or ERROR"
    )

    # An image that only a `.env` names which nobody has approved is never fetched.
    _fetches_image: bool = PrivateAttr(default=True)

    @property
    def fetches_image(self) -> bool:
        """Whether the image is pulled where it is missing."""
        return self._fetches_image

    @property
    def input_folder(self) -> Path:
        """Where cp_in reads."""
        return (self.workdir_in or self.workdir).absolute()

    @property
    def output_folder(self) -> Path:
        """Where cp_out and export_notebook write."""
        return (self.workdir_out or self.workdir).absolute()

    @property
    def instance(self) -> str:
        """What tells servers with other containers or folders apart: only those with the same go on with each other's sessions."""
        same = self.model_dump(
            mode="json",
            exclude={
                *("packages", "session_ttl", "notebook_ttl", "pool", "timeout", "wait", "output_bytes", "log_level"),
                *("checkpoints", "auto_checkpoints", "out_files"),
            },
        )
        folders = [str(self.input_folder), str(self.output_folder), str(self.state_dir.absolute()), str(self.ca_file)]
        return hashlib.sha256(json.dumps([same, folders], sort_keys=True).encode()).hexdigest()

    @property
    def ca_file(self) -> Path | None:
        """The CA bundle to use, if there is one."""
        named = [self.ca_bundle, *(Path(os.environ[name]) for name in CA_VARIABLES if os.environ.get(name))]
        return next((path for path in named if path is not None and path.is_file()), None)

    @property
    def preload_modules(self) -> list[str]:
        """The modules of PY_EXEC_PRELOAD."""
        return [] if self.preload == ["none"] else self.preload


def describe_settings() -> Iterator[tuple[str, str, str]]:
    """Name, default as one would write it, and description of every setting."""
    for field in Settings.model_fields.values():
        name, default = str(field.validation_alias), field.default
        yield name, _written(name, default), str(field.description)


def _written(name: str, default: Any) -> str:
    if name == "PY_EXEC_STATE_DIR":
        return "~/.local/state/kernel-server"
    if default is None or default == Path():
        return ""
    if name in ("PY_EXEC_MEMORY", "PY_EXEC_SESSION_MEMORY", "PY_EXEC_WORKSPACE_SIZE"):
        return f"{default >> 30}g"
    return f"{default:g}" if isinstance(default, float) else str(default)


def given_in_environment() -> dict[str, str]:
    """The variables that this process was given and that a server with the same behaviour needs."""
    names = [name for name, _, _ in describe_settings()]
    return {name: os.environ[name] for name in (*names, *ENGINE_VARIABLES, *CA_VARIABLES) if os.environ.get(name)}


@dataclass(frozen=True)
class Configuration:
    """Settings, and where they come from."""

    settings: Settings
    origin: Origin


def load_settings(arguments: Mapping[str, str] | None = None) -> Settings:
    """As `load_configuration`, without where they come from."""
    return load_configuration(arguments).settings


def load_configuration(arguments: Mapping[str, str] | None = None, env_file: str = "") -> Configuration:
    """Reads all settings.

    Args:
        arguments: by setting name; they come from the command line and win.
        env_file: the name of the file to read in place of `.env`, which the user thereby approves.

    Raises:
        ConfigurationError: names every bad value, each with its accepted form.
    """
    given = dict(arguments or {})
    file = find_env_file(env_file)
    if file is None or file.refused:
        return Configuration(_make(given), Origin(file))
    trusted = file.is_trusted(_state_dir(given))
    said = _from_file(file, given, references=trusted)
    if trusted:
        return Configuration(_make({**said, **given}), Origin(file, said))
    return _restricted(file, said, given)


def find_env_file(env_file: str = "") -> EnvFile | None:
    """The file that settings are read from.

    Raises:
        ConfigurationError: the one that is named cannot be read.
    """
    return named_file(env_file) if env_file else find_file(Path.cwd())


def _from_file(file: EnvFile, given: Mapping[str, str], *, references: bool) -> dict[str, str]:
    """What a file says of settings that nothing else says."""
    names = {name for name, _, _ in describe_settings()} - given.keys()
    names -= {name.upper() for name, value in os.environ.items() if value}  # pydantic takes names in any case
    return {name: value for name, value in file.values(references=references).items() if name in names}


def _restricted(file: EnvFile, said: dict[str, str], given: dict[str, str]) -> Configuration:
    """Takes from a file that nobody has approved what makes nothing wider than it is without it."""
    plain = {name: value for name, value in said.items() if REFERENCE not in value}
    with_file, without = _make({**plain, **given}), _make(given)
    taken = {name: value for name, value in plain.items() if _narrows(name, with_file, without)}
    settings = _make({**taken, **given})
    settings._fetches_image = settings.image == without.image  # noqa: SLF001 - nothing else is to set it
    return Configuration(
        settings, Origin(file, taken, {name: value for name, value in said.items() if name not in taken})
    )


def _narrows(name: str, with_file: Settings, without: Settings) -> bool:
    attribute = next(key for key, found in Settings.model_fields.items() if found.validation_alias == name)
    usual = {"WORKDIR_IN": without.input_folder, "WORKDIR_OUT": without.output_folder}
    return narrows(name, getattr(with_file, attribute), usual.get(name, getattr(without, attribute)))


def _state_dir(given: Mapping[str, str]) -> Path:
    """The state folder, whatever a file says."""
    named = [given.get("PY_EXEC_STATE_DIR")]
    named += [value for name, value in os.environ.items() if name.upper() == "PY_EXEC_STATE_DIR"]
    default = Settings.model_fields["state_dir"].default
    return Path(os.path.expanduser(next(filter(None, named), str(default))))


def _make(given: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigurationError([_explain(problem) for problem in error.errors()]) from error


def _explain(problem: Any) -> str:
    name = str(problem["loc"][0])
    for field in Settings.model_fields.values():
        if field.validation_alias == name and isinstance(field.json_schema_extra, dict):
            return f"{name}={problem['input']!r}: needs {field.json_schema_extra['form']}"
    return f"{name}: {problem['msg']}"
