"""The levels of instructions, and the setting that limits them: for our kernels, and for torch's. Imports no torch."""

import os
import platform
import sys
from collections.abc import Mapping

SETTING = "PENSTOCK_ISA"
"""Environment variable: the highest level that kernels may use here. It is read when Penstock is imported."""
NONE = "none"
"""The value of SETTING with which torch computes everything, as it likes."""
LEVELS = ("plain", "avx2", "avx512", "neon")
"""All levels for which kernels are compiled."""

_X86, _ARM = ("plain", "avx2", "avx512"), ("plain", "neon")
_FAMILIES = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}
_TORCH = {
    (_X86, "plain"): ("default", "SSE41"),
    (_X86, "avx2"): ("avx2", "AVX2"),
    (_X86, "avx512"): ("avx512", "AVX512_CORE_BF16"),
    (_ARM, "plain"): ("default", "ASIMD"),
    (_ARM, "neon"): ("default", "ASIMD"),
}
"""Values of torch's own variables: that of its operations, and that of oneDNN."""


def levels_of(machine: str) -> tuple[str, ...]:
    """The levels of a kind of processor, as ``platform.machine`` names it, from the lowest on. Pure."""
    return _FAMILIES.get(machine, ("plain",))


def allowed(value: str | None, machine: str) -> tuple[str, ...]:
    """The levels of ``machine`` that a ``value`` of SETTING allows, from the lowest on; None allows all. Pure.

    Raises ValueError, in one line, for a value that names none of them.
    """
    levels = levels_of(machine)
    if not value:
        return levels
    if value == NONE:
        return ()
    if value not in levels:
        raise ValueError(f"{SETTING} is {value!r}: on {machine} it can be {', '.join((NONE, *levels))}; or unset it")
    return levels[: levels.index(value) + 1]


def torch_variables(value: str | None, machine: str) -> dict[str, str]:
    """The variables that hold torch to the level ``value``; none if that is no level of ``machine``. Pure."""
    found = _TORCH.get((levels_of(machine), value or ""))
    return {} if found is None else dict(zip(("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"), found, strict=True))


def hold_torch() -> None:
    """Hold torch to the level of SETTING through its own variables, unless it is imported by now.

    Variables that are set stay as they are.
    """
    if "torch" not in sys.modules:
        for name, value in torch_variables(os.environ.get(SETTING), platform.machine()).items():
            os.environ.setdefault(name, value)


def find_not_held(environment: Mapping[str, str], machine: str) -> list[str]:
    """Say which variables of torch are not as SETTING wants them: "NAME=VALUE" each. Pure."""
    wanted = torch_variables(environment.get(SETTING), machine)
    return [f"{name}={value}" for name, value in wanted.items() if name not in environment]
