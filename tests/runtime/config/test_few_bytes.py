"""A size without a unit that is next to nothing was meant otherwise: that is said."""

import warnings
from pathlib import Path

import pytest

from penstock.runtime.config.config import Config

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(("name", "value"), [("host_memory", 100), ("host_memory", "16"), ("kv_prefix", 60_000)])
def test_a_bare_number_that_is_small(name: str, value: object) -> None:
    with pytest.warns(UserWarning, match=f'{name} = {value} means {value} bytes; with a unit it is "{value}MiB"'):
        Config.load(**{name: value})
    with pytest.warns(UserWarning, match="GiB"):
        Config().override(**{name: value})


def test_in_a_file() -> None:
    Path("penstock.toml").write_text('[memory]\nhost = 100\nfloor = "50B"\n')
    with pytest.warns(UserWarning, match=r"\[memory\] host = 100 means") as found:
        Config.load()
    assert len(found) == 1


def test_what_is_meant_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.load(host_memory="300KiB", flash_limit=0, kv_host_memory=1 << 20, threads=4, kv_budget=256)


def test_on_the_command_line(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("config", "--host-memory", "16")
    assert (code, err) == (0, 'penstock: note: host_memory = 16 means 16 bytes; with a unit it is "16MiB" or "16GiB"\n')
    assert "host = 16" in out
