"""All that a KV planner begins with (pure): plain values, from which the same planner can be built again and again."""

from dataclasses import dataclass

from .device_pages import DevicePages
from .planner import KVPlanner


@dataclass(frozen=True, slots=True)
class KVSetup:
    """``capacity`` bytes of memory, up to ``flash_limit`` bytes on flash (None: without bound), and ``device`` bytes of
    a device's memory for copies."""

    capacity: int
    flash_limit: int | None = None
    device: int = 0

    def planner(self) -> KVPlanner:
        """A planner to which nothing has happened yet."""
        planner = KVPlanner(self.capacity, self.flash_limit)
        planner.books.copies = DevicePages(self.device)
        return planner
