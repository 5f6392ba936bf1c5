"""Settings: where they come from, and what bad ones are told. The table of bad values is the accepted form's contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from kernel_server.cli import main
from kernel_server.config import CA_VARIABLES, Settings, describe_settings, load_settings, parse_size
from kernel_server.errors import ConfigurationError

BAD_VALUES = [
    ("DOCKER_IMAGE", "", "an image reference"),
    ("PY_EXEC_ENGINE", "podman", "docker or local"),
    ("PY_EXEC_SESSION_TTL", "0", "seconds above 0"),
    ("PY_EXEC_SESSION_TTL", "ten minutes", "seconds above 0"),
    ("PY_EXEC_SESSION_TTL", "nan", "seconds above 0"),
    ("PY_EXEC_SESSION_TTL", "inf", "seconds above 0"),
    ("PY_EXEC_SESSION_MAX", "0", "a whole number from 1 to 500"),
    ("PY_EXEC_SESSION_MAX", "501", "a whole number from 1 to 500"),
    ("PY_EXEC_SESSION_MAX", "1.5", "a whole number from 1 to 500"),
    ("PY_EXEC_TIMEOUT", "-1", "seconds, 0 or more"),
    ("PY_EXEC_OUTPUT_BYTES", "999", "a size of 1000 bytes or more"),
    ("PY_EXEC_MEMORY", "lots", "a size such as 512m or 4g"),
    ("PY_EXEC_MEMORY", "-1", "a size such as 512m or 4g"),
    ("PY_EXEC_SESSION_MEMORY", "4 apples", "a size such as 512m or 4g"),
    ("PY_EXEC_CPUS", "-0.5", "a number, 0 or more"),
    ("PY_EXEC_CPUS", "inf", "a number, 0 or more"),
    ("PY_EXEC_PACKAGES", "six, ../x", "any, none, or names of packages"),
    ("PY_EXEC_PACKAGES", "any, six", "any, none, or names of packages"),
    ("PY_EXEC_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING or ERROR"),
    ("PY_EXEC_CA_BUNDLE", "/no/such/file.pem", "there is no such file"),
]


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting from outside, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    for name, _, _ in describe_settings():
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("name", "value", "form"), BAD_VALUES)
def test_bad_value_is_named_with_its_accepted_form(name: str, value: str, form: str) -> None:
    """Issue 2, configuration."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings({name: value})
    (problem,) = raised.value.problems
    assert problem.startswith(f"{name}=")
    assert value in problem
    assert form in problem


def test_every_bad_value_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 2: from wherever they come; the user must not have to start the server once for each."""
    bad = {name: value for name, value, _ in BAD_VALUES}
    monkeypatch.setenv("PY_EXEC_ENGINE", bad.pop("PY_EXEC_ENGINE"))
    Path(".env").write_text(f"PY_EXEC_MEMORY={bad.pop('PY_EXEC_MEMORY')}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as raised:
        load_settings(bad)
    named = {problem.partition("=")[0] for problem in raised.value.problems}
    assert named == {name for name, _, _ in BAD_VALUES}
    assert all(name in str(raised.value) for name in named)


def test_command_line_beats_environment_beats_dotenv_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN: settings come from the command line, then the environment, then `.env` in the current folder."""

    def ttl(**arguments: str) -> float:
        return load_settings(arguments).session_ttl

    assert ttl() == 600
    Path(".env").write_text("PY_EXEC_SESSION_TTL=1\nSOMETHING_ELSE=2\n", encoding="utf-8")
    assert ttl() == 1
    monkeypatch.setenv("PY_EXEC_SESSION_TTL", "2")
    assert ttl() == 2
    assert ttl(PY_EXEC_SESSION_TTL="3") == 3


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: MCP clients' configuration files pass unset variables on as empty ones."""
    monkeypatch.setenv("PY_EXEC_SESSION_MAX", "")
    monkeypatch.setenv("WORKDIR_IN", "")
    assert load_settings().session_max == 32
    assert load_settings().input_folder == Path.cwd()


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1048576", 1 << 20),
        ("100k", 100 << 10),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("4g", 4 << 30),
        ("4GB", 4 << 30),
        ("4GiB", 4 << 30),
        (" 1.5 g ", 3 << 29),
        ("1t", 1 << 40),
        ("0", 0),
    ],
)
def test_size_is_read(written: str, size: int) -> None:
    """DESIGN: sizes take `512m`, `4g`."""
    assert parse_size(written) == size
    assert load_settings({"PY_EXEC_MEMORY": written}).memory == size


@pytest.mark.parametrize("written", ["", "m", "1x", "-1", "1 2", "1e3", "0x10", "٤٤x"])
def test_what_is_no_size_is_left_alone(written: str) -> None:
    """Ours: pydantic then says so, and the error names the value as it was written."""
    assert parse_size(written) == written


def test_workdir_is_the_default_of_both_folders(tmp_path: Path) -> None:
    """DESIGN: WORKDIR_IN/WORKDIR_OUT, else WORKDIR, else the current folder."""
    assert load_settings().input_folder == load_settings().output_folder == tmp_path
    both = load_settings({"WORKDIR": "/both"})
    assert (both.input_folder, both.output_folder) == (Path("/both"), Path("/both"))
    own = load_settings({"WORKDIR": "/both", "WORKDIR_OUT": "~/out"})
    assert (own.input_folder, own.output_folder) == (Path("/both"), Path("~/out").expanduser())


def test_ca_bundle_of_other_programs_is_used_when_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the setting, else the variables by which users tell pip, requests and OpenSSL; only files that exist."""
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert load_settings().ca_file is None
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    ours.touch()
    theirs.touch()
    monkeypatch.setenv("PIP_CERT", "/no/such/file")
    monkeypatch.setenv("SSL_CERT_FILE", str(theirs))
    assert load_settings().ca_file == theirs
    assert load_settings({"PY_EXEC_CA_BUNDLE": str(ours)}).ca_file == ours


@pytest.mark.parametrize(
    ("written", "modules"), [("none", []), ("numpy", ["numpy"]), (" numpy, pandas ,", ["numpy", "pandas"])]
)
def test_preload_is_a_list_of_modules(written: str, modules: list[str]) -> None:
    """Ours: module names with commas between them, or none; also from the environment, where pydantic expects JSON."""
    assert load_settings({"PY_EXEC_PRELOAD": written}).preload_modules == modules


def test_preload_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: pydantic-settings wants JSON for a list in the environment; people write commas."""
    monkeypatch.setenv("PY_EXEC_PRELOAD", "numpy, scipy")
    assert load_settings().preload_modules == ["numpy", "scipy"]
    monkeypatch.setenv("PY_EXEC_PRELOAD", "none")
    assert load_settings().preload_modules == []


def test_dotenv_that_is_no_text_is_a_configuration_error() -> None:
    """Issue 2: a bad configuration is told, not shown as a traceback."""
    Path(".env").write_bytes(b"PY_EXEC_ENGINE=\xff\xfe\n")
    with pytest.raises(ConfigurationError, match=r"\.env"):
        load_settings()


def test_settings_are_frozen() -> None:
    """STYLE: one frozen object."""
    with pytest.raises(ValidationError):
        setattr(load_settings(), "session_ttl", 1.0)  # noqa: B010 - mypy would refuse the plain form


def test_command_line_tells_bad_values_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours: what a person sees who starts the server by hand; nothing goes to stdout, which may be the MCP wire."""
    assert main(["--PY_EXEC_ENGINE", "podman", "--py-exec-session-max", "x"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "PY_EXEC_ENGINE='podman'" in shown.err
    assert "PY_EXEC_SESSION_MAX='x'" in shown.err


def test_each_setting_has_a_description_and_a_form() -> None:
    """STYLE: the README table and `.env.example` are made of these."""
    for field in Settings.model_fields.values():
        assert field.description, field.validation_alias
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["form"], field.validation_alias
    assert len({name for name, _, _ in describe_settings()}) == len(Settings.model_fields)
