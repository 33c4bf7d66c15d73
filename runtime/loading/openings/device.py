"""The device that the settings name, and the part of its memory to use."""

from collections.abc import Iterable
from importlib.util import find_spec

from ....kernels.cuda.registry import find_device_format
from ....kernels.devices.base import Device, NoDevice
from ....kernels.devices.cuda import Cuda
from ....kernels.devices.emulated import Emulated
from ....tiering.errors import ConfigError, DeviceFull, DeviceUnavailable
from ....tiering.policy.placement.placement import with_working_memory
from ....tiering.units import GiB, format_size, parse_size
from ...config.config import Config

EMULATED = "emulated"


def open_device(settings: Config) -> Device | None:
    """The device to compute on; None for the CPU. Raises DeviceUnavailable, and ConfigError where settings of a device
    are given without one."""
    name = settings.compute.device
    if settings.experts.products == "grouped":
        _check_grouped(name)
    if name in ("auto", "cpu"):
        if settings.memory.device != "auto":
            raise ConfigError(
                f"[memory] device = {format_size(settings.memory.device)} is for a device; name it in [compute] device"
            )
        if settings.experts.misses != "copy":
            raise ConfigError(
                f'[experts] misses = "{settings.experts.misses}" is for a device; name it in [compute] device'
            )
        return None
    if name.split(":")[0] == EMULATED:
        rate = name.partition(":")[2]
        return Emulated(rate=parse_size(rate) if rate else None, name=name)
    try:
        return Cuda(name)
    except NoDevice as error:
        raise DeviceUnavailable(f'{error}; write device = "cpu"') from error


def check_formats(device: Device, formats: Iterable[str]) -> None:
    """Raise ConfigError where ``device`` cannot compute with weights in one of ``formats``, as manifests name them."""
    if device.compute.type == "cpu":
        return
    try:
        strange = sorted(name for name in formats if find_device_format(name) is None)
    except ImportError as error:  # Triton, which says so
        raise ConfigError(str(error)) from error
    if strange:
        raise ConfigError(
            f'weights in {", ".join(strange)} cannot be computed with on {device.name}; write device = "cpu", or take '
            "the checkpoint that they were made of"
        )


def _check_grouped(device: str) -> None:
    if not device.startswith("cuda"):
        raise ConfigError('[experts] products = "grouped" is for a CUDA device; name it in [compute] device')
    if find_spec("triton") is None:
        raise ConfigError("[experts] products = \"grouped\" needs the triton package: pip install 'penstock[cuda]'")


def device_budget(settings: Config, device: Device, model_bytes: int, kv: int = 0) -> int:
    """Bytes of ``device``'s memory to work in: as written; for "auto" seven eighths of the free memory, as far as a
    model of ``model_bytes`` and ``kv`` bytes of KV have use for it. Raises DeviceFull where less is free than is
    written, and ConfigError for "auto" on an emulated device, which has no memory of its own."""
    free, total = device.memory()
    if settings.memory.device != "auto":
        if settings.memory.device > free:
            raise DeviceFull(
                f"device_memory is {format_size(settings.memory.device)}, but of the {format_size(total)} of "
                f"{device.name} {format_size(free)} are free: other processes may have the rest; lower device_memory, "
                "or end them"
            )
        return settings.memory.device
    if device.name.split(":")[0] == EMULATED:
        raise ConfigError(f"{device.name} has no memory of its own; write how much it may use in [memory] device")
    return min(free - max(free // 8, min(GiB // 2, free // 2)), with_working_memory(model_bytes) + kv)
