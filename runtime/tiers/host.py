"""The host tier of one model: its arena, its reader, and the bridge over them."""

from typing import TYPE_CHECKING

from ...kernels.memory.arena import Arena
from ...tiering.planner.regions import EXPERTS
from ...tiering.planner.setup import Setup
from ...tiering.policy.drive_reading import Reading
from ...tiering.store.bundle.flash import BundleFlash
from ...tiering.store.bundle.reader import Bundle
from ..machine.reading import open_reader
from .bridge import Bridge, Watch

if TYPE_CHECKING:
    from ..tracing.run_recording import RunRecording


class HostTier:
    """Filled by nobody yet. Raises ConfigError where this machine cannot read as ``reading`` says."""

    def __init__(
        self, setup: Setup, bundle: Bundle, reading: Reading, *, watch: Watch | None, recording: "RunRecording | None"
    ) -> None:
        """Over ``bundle``, for a planner as ``setup`` has it; ``watch`` and ``recording`` as for Bridge."""
        planner = setup.planner()
        experts = planner.residency.regions[EXPERTS]
        self.experts = (experts.start, experts.capacity)
        """Start and length in bytes of the part of the arena that is for experts."""
        self.arena = Arena(max(planner.residency.capacity, 1))
        self._reader = open_reader(reading, setup.drives)
        self.bridge = Bridge(planner, BundleFlash(bundle, self._reader), self.arena, watch=watch, recording=recording)

    def close(self) -> None:
        """Let reads land, give the memory back. Idempotent."""
        self.bridge.close()
        self._reader.close()
        self.arena.close()
