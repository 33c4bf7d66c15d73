"""The device tier that a plan is made for: how much of its memory, and how fast the way to it is."""

from typing import TYPE_CHECKING, NamedTuple

from ...tiering.sim.devices import Bus

if TYPE_CHECKING:
    from ..config.config import Config


class DeviceAbove(NamedTuple):
    """``memory`` bytes for weights of a device above the ``bus``. ``unmeasured``: what computing takes there."""

    memory: int
    bus: Bus
    unmeasured: bool


def device_of(config: "Config", model_bytes: int) -> DeviceAbove | None:
    """The device that ``config`` names, for a model of ``model_bytes``, its bus measured; None for the CPU. Raises
    DeviceUnavailable, DeviceFull and ConfigError."""
    from ...kernels.devices.measure import bus_speed
    from ..loading.openings.device import device_budget, open_device
    from ..loading.openings.kv import kv_device_bytes

    device = open_device(config)
    if device is None:
        return None
    kv = kv_device_bytes(config, model_bytes)
    memory = device_budget(config, device, model_bytes, kv) - kv
    return DeviceAbove(memory, Bus(bus_speed(device)[0]), unmeasured=device.compute.type != "cpu")
