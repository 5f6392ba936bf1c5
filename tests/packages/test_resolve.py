"""For which platform uv looks: the session's, as uv calls it."""

from __future__ import annotations

import pytest

from kernel_server.errors import PackageError
from kernel_server.packages.environment import Environment
from kernel_server.packages.resolve import platform_of


def environment(machine: str, *platforms: str, **markers: str) -> Environment:
    told = {"implementation_name": "cpython", "sys_platform": "linux", "platform_machine": machine, **markers}
    return Environment(told, "cp313", platforms, {})


@pytest.mark.parametrize(
    ("machine", "platforms", "name"),
    [
        ("x86_64", ("linux_x86_64", "manylinux_2_41_x86_64", "manylinux_2_40_x86_64"), "x86_64-manylinux_2_40"),
        ("aarch64", ("manylinux_2_36_aarch64",), "aarch64-manylinux_2_36"),
        ("x86_64", ("manylinux_2_27_x86_64", "manylinux_2_26_x86_64"), "x86_64-manylinux_2_17"),
        ("x86_64", ("manylinux_2_5_x86_64",), "x86_64-manylinux_2_17"),
        ("x86_64", ("musllinux_1_2_x86_64",), "x86_64-unknown-linux-musl"),
    ],
)
def test_platform_is_the_next_below_that_uv_knows(machine: str, platforms: tuple[str, ...], name: str) -> None:
    """`uv pip install --help`, --python-platform."""
    assert platform_of(environment(machine, *platforms)) == name


@pytest.mark.parametrize("markers", [{"implementation_name": "pypy"}, {"sys_platform": "darwin"}])
def test_other_pythons_are_refused(markers: dict[str, str]) -> None:
    """Ours: what would not be found for them is not looked for."""
    with pytest.raises(PackageError, match="CPython on Linux only"):
        platform_of(environment("x86_64", "manylinux_2_40_x86_64", **markers))
