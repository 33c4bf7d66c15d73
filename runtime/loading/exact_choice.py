"""The exact format that "auto" means. Looks at the model and the machine; forecasting/exact.py chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ...kernels import native
from ...kernels.devices import measure
from ...kernels.devices.base import Device
from ...tiering.errors import BudgetTooSmall, ConfigError
from ...tiering.planner.arrangement import Outline, typical_block
from ...tiering.sim.devices import Bus
from ...tiering.store.bundle.manifest import BundleDrive
from ...tiering.units import MiB, format_size
from ..checkpoints.describe import Description, describe
from ..checkpoints.layout import Layout
from ..checkpoints.source import Source
from ..checkpoints.weights import SourceFormat
from ..config.config import Config
from ..forecasting.exact import LOSSLESS, CoresWithRate, ExactChoice, ExactWay, choose_exact, take_as_is
from ..forecasting.forecast import Devices
from ..machine import timings
from ..machine.drives import modelled
from ..machine.exact_rates import ExactRates, measure_exact
from ..machine.timings import Timings
from ..packing.arrange.arrange import estimate
from ..packing.arrange.formats import Rules
from ..packing.arrange.stripes import stripe
from ..packing.rules import ExactRules, named_rules
from .arrangement import arrange_model, find_budgets
from .openings.device import check_formats
from .outline import outline_model

SMALL = 64 * MiB
"""Bytes of weights below which nothing is compared: that would take longer than any format saves."""
_UNBOUNDED = 1 << 62


def rules_of(settings: Config, device: Device | None) -> Rules | ExactRules:
    """The formats that ``settings`` ask for, for a model that computes on ``device``."""
    candidates = named_rules(settings.weights)
    if len(candidates) == 1:
        return candidates[0]

    def choose(source: Source, described: Description) -> str:
        contents = source.read(described, _UNBOUNDED)
        stored = contents.weights.stored()
        contents.weights.close()
        return compare_exact(contents.model, describe(contents.model), stored, settings, device).format

    return ExactRules(candidates, choose)


def compare_exact(
    model: PreTrainedModel,
    layout: Layout,
    stored: Mapping[str, SourceFormat],
    settings: Config,
    device: Device | None,
) -> ExactChoice:
    """Choose for ``model``, which is laid out as ``layout`` where nothing is encoded, and of which the source has
    ``stored`` some weights quantised. Takes a second, or some if the drive was not measured yet. Raises DeviceFull."""
    if layout.total_bytes < SMALL:
        return take_as_is(f"is fast enough for a model of less than {format_size(SMALL)}")
    if stored:
        return take_as_is("keeps the format that the checkpoint has its weights in")
    on_cores = device is None or device.compute.type == "cpu"
    if on_cores and native.KERNELS is None:
        return take_as_is("needs no decoding, which is slow without compiled kernels")
    as_is, lossless = named_rules(settings.weights.model_copy(update={"format": "auto"}))
    layouts = [estimate(model, layout, rules, stored) for rules in (as_is, lossless)]
    outlines = [_outline(model, each, settings) for each in layouts]
    if LOSSLESS not in outlines[1].formats:
        return take_as_is("is all there is: lossless takes bfloat16 weights")
    try:
        if device is not None:
            check_formats(device, outlines[1].formats)
        rates = measure_exact(None if on_cores or device is None else device.compute)
        bus = None if device is None else Bus(measure.measure_bus(device)[0])
        ways = [_way(model, each, settings, device, rates, bus) for each in layouts]
    except (ConfigError, ImportError) as error:
        return take_as_is(f"is safe: {error}")
    return choose_exact(*ways)


def product_factor(formats: frozenset[str], rates: ExactRates, found: Timings, device: Device | None) -> float:
    """How many times as fast as ``found`` says products read weights in ``formats``, by ``rates``: on ``device``, or
    on the cores, whose ``rates`` only count as compared with each other."""
    cores = device is None or device.compute.type == "cpu"
    return rates.of(formats) / (rates.as_is if cores else found.products["bfloat16"].one)


def _outline(model: PreTrainedModel, layout: Layout, settings: Config) -> Outline:
    return outline_model(model, layout, settings.weights.quality, 1 + len(settings.store.stripes))


def _way(
    model: PreTrainedModel,
    layout: Layout,
    settings: Config,
    device: Device | None,
    rates: ExactRates,
    bus: Bus | None,
) -> ExactWay:
    """``model`` as ``layout`` has it, in the memory and on the drives of this machine."""
    places = [settings.store.path, *settings.store.stripes]
    plain = _outline(model, layout, settings)
    budgets = find_budgets(plain, settings, device, model.config)
    size = typical_block(plain, budgets)
    drives, reading, _ = modelled(places, settings.io, block=size)
    dealt = deal_by(places, [each.delivered(size, reading.depth) for each in drives])
    outline = _outline(model, stripe(layout, dealt), settings)
    kept = timings.load(settings.compute.threads)
    found = Timings.usual(rates.as_is) if kept is None else kept.timings
    cores = CoresWithRate(found, product_factor(outline.formats, rates, found, device))
    beside = [found.beside_cores(drive, experts=bool(outline.layers)) for drive in drives]
    try:
        arrangement = arrange_model(outline, budgets, settings, reading)
    except BudgetTooSmall:
        arrangement = None
    return ExactWay(outline, arrangement, Devices(beside, cores), bus)


def deal_by(places: Sequence[Path], speeds: Sequence[float]) -> list[BundleDrive]:
    """The drives that blocks are dealt to, with their speeds in bytes per second; none where there is one place."""
    if len(places) == 1:
        return []
    return [BundleDrive(str(place), max(1, round(speed))) for place, speed in zip(places, speeds, strict=True)]
