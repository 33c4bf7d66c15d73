"""The bridge of the device tier. It tells the host tier what compute threads do."""

import _thread
import threading
from collections.abc import Sequence

from ....kernels.devices.base import Device, Mark
from ....kernels.devices.fences import Fences
from ....kernels.waiting import may_wait
from ....tiering.events import Event, Expect, Read
from ....tiering.planner.planner import Planner
from ....tiering.planner.relay import expected
from ....tiering.units import BlockId
from ..bridge import Bridge
from ..leases import Inbox
from .uplink import DeviceMemory, Uplink


class DeviceBridge(Bridge):
    """When a lease is given back, a mark is left behind the computations under it: the device may still run them."""

    def __init__(
        self, planner: Planner, uplink: Uplink, memory: DeviceMemory, device: Device, fences: Fences[Mark], host: Bridge
    ) -> None:
        super().__init__(planner, uplink, memory)
        self._uplink, self._device, self._fences, self._host = uplink, device, fences, host

    def begin(self) -> None:
        """The calling thread enters the model's forward."""
        self._uplink.begin()
        super().begin()

    def end(self) -> None:
        """The calling thread leaves the model's forward; what it still holds goes."""
        self._mark([*self._planner.residency.held(threading.get_ident())])
        super().end()
        self._host.end()  # what it computed there

    def release(self, *blocks: BlockId) -> None:
        """Give back one lease of the calling thread on each of ``blocks``."""
        self._mark(blocks)
        super().release(*blocks)

    def _expect(self, event: Expect) -> None:
        """Announce ``event`` to the device tier and to the host tier, to each what is missing there."""
        on_host, on_device = expected(event, self.is_missing, self._host.is_missing)
        self._host.relay([on_host])
        super()._expect(on_device)

    def forget(self, ticket: int, inbox: Inbox, *, withdraw: bool) -> None:
        """As Bridge.forget. The garbage collector may call this anywhere, also where the host's bridge is locked: then
        a thread of its own does it, soon."""
        if withdraw and not may_wait():
            _thread.start_new_thread(self._withdraw, (ticket, inbox))
        else:
            super().forget(ticket, inbox, withdraw=withdraw)

    def _withdraw(self, ticket: int, inbox: Inbox) -> None:
        super().forget(ticket, inbox, withdraw=True)

    def close(self) -> None:
        """Refuse all requests that wait, let copies under way land, end their threads. Idempotent."""
        super().close()
        self._uplink.close()

    def _note_start(self, read: Read) -> None:
        """Copies are noted when they are made."""

    def _note_end(self, event: Event) -> None: ...

    def _mark(self, blocks: Sequence[BlockId]) -> None:
        mark = self._device.mark() if blocks else None
        for block in blocks if mark is not None else ():
            slot = self._planner.residency.where(block)
            if slot is not None and mark is not None:
                self._fences.used(slot.offset, slot.length, mark)
