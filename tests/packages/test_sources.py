"""What pip is configured for reaches uv as well: one configuration, two programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_server.packages.sources import Sources

pytestmark = pytest.mark.anyio


async def test_pip_configuration_is_told_to_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6: index, certificates and proxy of the user; a section for installing counts, the environment wins."""
    for name in ("PIP_FIND_LINKS", "PIP_CERT", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n  https://b.example/x\n  https://c.example/x\n"
        "proxy = http://proxy.example:3128\ncert = /a.pem\n"
        "[install]\nfind-links = /one /two\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_CERT", "/b.pem")
    monkeypatch.setenv("UV_NO_BUILD", "0")
    (tmp_path / "empty").mkdir()
    found = await Sources(None).environment(tmp_path / "empty")
    told = {name: found.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "PIP_FIND_LINKS")}
    assert told == {
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_INDEX": "https://b.example/x https://c.example/x",
        "UV_FIND_LINKS": "/one,/two",
        "PIP_FIND_LINKS": "/one /two",
    }
    assert (found["ALL_PROXY"], found["SSL_CERT_FILE"], found["PIP_CERT"]) == (
        "http://proxy.example:3128",
        "/b.pem",
        "/b.pem",
    )
    assert "UV_NO_BUILD" not in found


async def test_index_of_uv_counts_where_pip_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: for users who have told only uv; the CA file of the settings where nothing else is told."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")  # pip: no configuration file at all
    for name in ("PIP_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://a.example/simple")
    found = await Sources(Path("/ca.pem")).environment(tmp_path)
    assert found["PIP_INDEX_URL"] == found["UV_DEFAULT_INDEX"] == "https://a.example/simple"
    assert found["PIP_CERT"] == found["SSL_CERT_FILE"] == "/ca.pem"
