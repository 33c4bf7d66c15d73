"""What a long context adds to a token: bytes on flash, and seconds of drive and cores."""

import pytest

from penstock.tiering.sim.devices import Drive, Memory
from penstock.tiering.sim.kv import KvLoad, seconds_with


def test_three_quarters_of_the_memory_stay_and_the_rest_is_on_flash() -> None:
    assert KvLoad.of(10, 1000, 400) == KvLoad(10, 1000, 700)
    assert KvLoad.of(10, 1000, 2000).flash == KvLoad.of(10, 1000, None).flash == 0


def test_a_token_takes_as_long_as_the_drive_or_the_cores() -> None:
    drive, memory = Drive(100.0, contention=0.5), Memory(1000.0, contention=0.1)
    assert seconds_with(KvLoad(1, 500, 0), 2.0, 0, drive, memory) == (2.5, 0.0)
    assert seconds_with(KvLoad(1, 500, 100), 2.0, 20, drive, memory) == (pytest.approx(2.7), pytest.approx(2.4))
    assert seconds_with(KvLoad(1, 500, 300), 2.0, 20, drive, memory) == (pytest.approx(6.4), pytest.approx(6.4))
