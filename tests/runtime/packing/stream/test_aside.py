"""Memory for what runs beside reading: a part of what there is, whatever the machine."""

import pytest

from penstock.runtime.packing.stream.aside import Aside
from penstock.tiering.units import MiB


@pytest.mark.parametrize("cores", [1, 2, 64])
@pytest.mark.parametrize("room", [0, 3 * MiB, 47 * MiB, 48 * MiB, 120 * MiB, 1 << 30, 1 << 34, 1 << 62])
def test_reading_keeps_half_of_it(room: int, cores: int) -> None:
    found = Aside.of(room, cores)
    assert 0 <= found.total <= room // 2
    assert 1 <= found.threads <= cores
    assert found.total <= cores * 8 * MiB + (1 << 30) + 32 * MiB


def test_with_little_nothing_runs_beside() -> None:
    assert Aside.of(47 * MiB, 8) == Aside(0, 1, 0)
    assert Aside.of(48 * MiB, 8).matrices > 0


def test_with_more_all_cores_encode() -> None:
    assert [Aside.of(room * MiB, 8).threads for room in (48, 120, 1000)] == [1, 2, 8]
