"""A machine for tests, described instead of measured."""

from collections.abc import Sequence

from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.machine.drive_rates_file import DriveRates
from penstock.runtime.machine.timings import Delivery, KeptTimings, ProductSpeeds, Pulse, Timings
from penstock.runtime.planning.reference import TimingsNow
from penstock.tiering.policy.measured import Measured
from penstock.tiering.units import MiB

TIMINGS = Timings(
    memory=1e10,
    overhead=0.0,
    contention=0.0,
    guess=0.0,
    layer_warm=0.0,
    layer_cold=0.0,
    cold=MiB,
    dense_memory=1e10,
    dense_layer=0.0,
    dense_contention=0.0,
    token=0.0,
    delivery=Delivery(share=1.0, contention=0.0),
    dense_delivery=Delivery(share=1.0, contention=0.0),
    products={dtype: ProductSpeeds(one=1e10, many=1e12) for dtype in ("bfloat16", "float32")},
)
"""A machine on which only weights take time."""

MEASURED = Measured(when=1e9, seen=1e9, spread=0.1, doubts=(), others=0.0, waited=0.0)
"""A measurement long ago."""

KEPT = KeptTimings(timings=TIMINGS, measured=MEASURED, pulse=Pulse(products=1e10, steps=1e-3))
"""That machine, as it is kept."""

NOW = TimingsNow(KEPT, MEASURED)
"""That machine, after a brief look."""


def measured(rates: Sequence[ReadRate]) -> DriveRates:
    """The rates of a drive, measured long ago."""
    return DriveRates(list(rates), MEASURED)
