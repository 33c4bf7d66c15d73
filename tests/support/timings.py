"""A machine for tests, described instead of measured."""

from penstock.runtime.machine.timings import Delivery, ProductSpeeds, Timings
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
