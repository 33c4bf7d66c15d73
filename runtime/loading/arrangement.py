"""The arrangement of a model on this machine, from its settings and the memory there is."""

from typing import Any

from ...kernels.devices.base import Device
from ...tiering.planner.arrangement import Arrangement, MemoryBudgets, Outline, arrange_memory
from ...tiering.policy.drive_reading import Reading
from ..config.config import Config
from .openings.device import check_formats, device_budget
from .openings.kv_memory import kv_device_bytes, least_kv_host


def find_budgets(outline: Outline, settings: Config, device: Device | None, model: Any) -> MemoryBudgets:
    """The memory to divide: as ``settings`` say, and for "auto" as much as the machine and ``device`` have now.
    ``model`` is transformers' configuration of the model.

    Raises DeviceFull, and ConfigError where ``device`` cannot compute with the weights, or has no memory of its own.
    """
    kv_host, needed = settings.kv_host or 0, outline.total_bytes + outline.scratch
    host = settings.host_budget(outline.total_bytes + kv_host)
    kv_device = kv_device_bytes(settings, needed)
    if device is not None:
        check_formats(device, outline.formats)
    return MemoryBudgets(
        host=host,
        floor=settings.host_floor,
        device=None if device is None else device_budget(settings, device, needed, kv_device),
        kv_host=kv_host,
        kv_least=least_kv_host(kv_host, model),
        kv_device=kv_device,
    )


def arrange_model(outline: Outline, budgets: MemoryBudgets, settings: Config, reading: Reading) -> Arrangement:
    """Arrange ``outline`` within ``budgets``, read as ``reading`` says, with the policies that ``settings`` name.
    Raises BudgetTooSmall."""
    experts = settings.experts
    return arrange_memory(outline, budgets, reading, eviction=experts.eviction, guess=experts.prefetch == "auto")
