"""Laptops and workstations, described by a few numbers each (pure): none of them was measured.

MACHINES has the figures of data sheets. REFERENCE has those that no data sheet gives: the share of memory bandwidth
that cores get, the time of a layer besides its weights, and how much drives and cores slow each other down. They come
from the machine on which penstock was measured.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from penstock.runtime.config.config import auto_host_memory
from penstock.runtime.forecasting.forecast import Devices
from penstock.runtime.machine.drive_speeds import DEPTHS, SIZES
from penstock.runtime.machine.timings import Delivery, ProductSpeeds, Timings
from penstock.tiering.policy.drive_reading import Reading, choose
from penstock.tiering.policy.placement.placement import with_working_memory
from penstock.tiering.sim.devices import Drive
from penstock.tiering.units import GiB, MiB

OTHERS = 4 * GiB
"""Memory that the system and other programs take."""
CORES_GET = 0.75
"""Share of the nominal memory bandwidth at which products of one token read bfloat16 weights. Tuned kernels on desktop
processors reach 70 to 85 %."""


class Reference(NamedTuple):
    """Times and shares of the machine on which penstock was measured: two cores (Zen 5) of a virtual machine, medians
    of four turns of penstock.runtime.planning.reference.measure, in seconds.

    Dense layers are read at ``dense`` of the speed of experts. Cores that compute experts lose the share ``contention``
    while a drive delivers, and those that compute dense layers lose ``dense_contention``. A drive loses
    ``drive_contention`` while cores compute. A core verifies ``checksum`` bytes per second and takes ``handling``
    seconds for each read.
    """

    overhead: float = 1.3e-4
    guess: float = 1.1e-4
    layer_warm: float = 3.4e-4
    layer_cold: float = 1.1e-3
    cold: int = 30 * MiB
    dense_layer: float = 1.5e-4
    token: float = 1.9e-4
    dense: float = 0.56
    contention: float = 0.31
    dense_contention: float = 0.4
    drive_contention: float = 0.25
    checksum: float = 3e10
    handling: float = 5e-5


REFERENCE = Reference()
_AS_DESCRIBED = Delivery(share=1.0, contention=0.0)  # drives are described with what computing costs them


class _Rate(NamedTuple):
    """The rate that a measurement of a described drive would give."""

    backend: str
    size: int
    depth: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A described machine: ``memory`` bytes, read at ``bandwidth`` bytes per second, of which products get the share
    ``cores_get``. The ``cores`` together do ``flops`` operations per second in bfloat16 for many tokens. There are
    ``drives`` equal drives. Each delivers ``drive_speed`` bytes per second to large reads, the first byte after
    ``latency`` seconds.

    Computing takes ``besides`` times the reference's time besides weights. ``disturbed`` says whether drives and cores
    slow each other down as they do there.
    """

    name: str
    memory: int
    bandwidth: float
    cores: int
    flops: float
    drive_speed: float
    drives: int = 1
    cores_get: float = CORES_GET
    latency: float = 1e-4
    besides: float = 1.0
    disturbed: bool = True

    @property
    def memory_speed(self) -> float:
        """Bytes of weights per second that one token is multiplied by."""
        return self.bandwidth * self.cores_get

    @property
    def flash_speed(self) -> float:
        """Bytes per second of all drives together."""
        return self.drive_speed * self.drives

    def host_memory(self, model_bytes: int) -> int:
        """The budget in bytes that ``host = "auto"`` gives a model of ``model_bytes`` bytes."""
        return auto_host_memory(self.memory - OTHERS, with_working_memory(model_bytes))

    def devices(self, dtype: str, *, packing: float = 1.0) -> Devices:
        """For a model whose weights of ``dtype`` take ``packing`` of the bytes that bfloat16 takes. Packed weights are
        read at the same bytes per second, and take the same arithmetic."""
        return Devices([self._drive()] * self.drives, self._timings(dtype, packing))

    def reading(self, block: int) -> Reading:
        """How its drives are read, in reads of about ``block`` bytes."""
        drive = self._drive()
        rates = [_Rate("described", size, depth, drive.delivered(size, depth)) for size in SIZES for depth in DEPTHS]
        return choose(rates, block=block)

    def _drive(self) -> Drive:
        return Drive(
            self.drive_speed,
            latency=self.latency,
            single=self.drive_speed,
            contention=REFERENCE.drive_contention if self.disturbed else 0.0,
            # One core does it, and the others go on; the simulator knows all cores together.
            checksum=REFERENCE.checksum * self.cores,
            handling=REFERENCE.handling / self.cores,
        )

    def _timings(self, dtype: str, packing: float) -> Timings:
        speed, disturbed = self.memory_speed, float(self.disturbed)
        plain = ProductSpeeds(one=speed, many=self.flops)  # two bytes and two operations for each weight
        return Timings(
            memory=speed,
            overhead=REFERENCE.overhead * self.besides,
            contention=REFERENCE.contention * disturbed,
            guess=REFERENCE.guess * self.besides,
            layer_warm=REFERENCE.layer_warm * self.besides,
            layer_cold=REFERENCE.layer_cold * self.besides,
            cold=REFERENCE.cold,
            dense_memory=speed * REFERENCE.dense,
            dense_layer=REFERENCE.dense_layer * self.besides,
            dense_contention=REFERENCE.dense_contention * disturbed,
            token=REFERENCE.token * self.besides,
            delivery=_AS_DESCRIBED,
            dense_delivery=_AS_DESCRIBED,
            products={"bfloat16": plain, "float32": plain, dtype: ProductSpeeds(one=speed, many=self.flops * packing)},
        )


_LAPTOP = Machine(
    "laptop, 16 GiB",
    memory=16 * GiB,
    bandwidth=89.6e9,  # DDR5-5600, two channels
    cores=8,
    flops=1.2e12,
    drive_speed=6e9,  # PCIe 4, sold with 7
)
_WORKSTATION = Machine(
    "workstation, 128 GiB",
    memory=128 * GiB,
    bandwidth=179.2e9,  # DDR5-5600, four channels
    cores=24,
    flops=6e12,
    drive_speed=11e9,  # PCIe 5, sold with 12 to 14
)
MACHINES = (
    _LAPTOP,
    replace(_LAPTOP, name="laptop, 32 GiB", memory=32 * GiB),
    replace(
        _LAPTOP,
        name="laptop, 64 GiB unified",
        memory=64 * GiB,
        bandwidth=256e9,  # LPDDR5X-8000, 256 bits
        cores_get=0.45,  # made for the graphics unit: the cores reach about half
        cores=16,
        flops=4e12,
    ),
    _WORKSTATION,
    replace(_WORKSTATION, name="workstation, two drives", drives=2),
)
