"""The cases of the report on models that do not fit here, and the simulation of each."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from big_models import COMPARED, MODELS, BigModel
from machines import MACHINES, Machine

from penstock.runtime.forecasting.assumed import POPULARITY, assumed_routes
from penstock.runtime.forecasting.forecast import PRECISION, Forecast, Forecaster, count_routed
from penstock.tiering.planner.arrangement import MemoryBudgets, Outline, arrange_memory, least_host, typical_block
from penstock.tiering.policy.placement.placement import with_working_memory

PROMPT = 512
"""Tokens of the prompt before the first one."""
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Budgets of a curve, of the way from the least to the one that holds everything."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a machine. ``packed`` means as it is published instead of in bfloat16. ``budget`` is in bytes, or
    None for what ``host = "auto"`` gives. The other assumptions are those of ``penstock plan``, unless a case says
    otherwise."""

    model: BigModel
    machine: Machine
    packed: bool = False
    budget: int | None = None
    popularity: float = POPULARITY
    precision: float = PRECISION
    guess: bool = True


@dataclass(frozen=True, slots=True)
class Figure:
    """The simulated figures of a case. ``used`` are the bytes of weights that a token uses, ``took`` the seconds of the
    simulation."""

    host_memory: int
    forecast: Forecast
    used: int
    limit: float
    took: float

    @property
    def of_limit(self) -> float:
        """The speed as a share of the limit computed by hand."""
        return self.forecast.tokens_per_second / self.limit


@cache
def outline_of(model: BigModel, packed: bool, drives: int) -> Outline:
    """Describe the blocks of ``model`` as its bundle would have them (kept, since it takes seconds)."""
    return model.outline(packed=packed, drives=drives)


def simulate_case(case: Case) -> Figure:
    """Simulate ``case``. Raises BudgetTooSmall."""
    began = time.perf_counter()
    model, machine = case.model, case.machine
    outline = outline_of(model, case.packed, machine.drives)
    packing = outline.total_bytes / outline_of(model, False, machine.drives).total_bytes
    budget = machine.host_memory(outline.total_bytes) if case.budget is None else case.budget
    budgets = MemoryBudgets(budget)
    arrangement = arrange_memory(
        outline, budgets, machine.reading(typical_block(outline, budgets)), eviction="auto", guess=case.guess
    )
    devices = machine.devices(outline.dtype, packing=packing)
    routes = None
    if outline.layers:
        routes = assumed_routes(outline.layers, count_routed(outline.layers, PROMPT), popularity=case.popularity)
    forecaster = Forecaster(outline, devices, routes, prompt_tokens=PROMPT, precision=case.precision)
    found = forecaster.forecast(arrangement)
    used = forecaster.bytes_per_token
    limit = limit_of(found.flash_bytes_per_token, used, machine)
    return Figure(budget, found, used, limit, time.perf_counter() - began)


def limit_of(flash_bytes: int, used_bytes: int, machine: Machine) -> float:
    """Compute the tokens per second if only bytes took time, and drives and cores worked at the same time."""
    return 1 / max(flash_bytes / machine.flash_speed, used_bytes / machine.memory_speed)


def name_of(case: Case) -> str:
    """Name the model of ``case`` and its format."""
    if case.packed and case.model.packed:
        return f"{case.model.name}, {case.model.packed.name}"
    return f"{case.model.name}, bfloat16"


# --- what the report asks -----------------------------------------------------------------------------------------


def cases() -> list[Case]:
    """List each model on each machine, in bfloat16, and packed where it is published so."""
    return [
        Case(model, machine, packed)
        for model in MODELS.values()
        for packed in ((False, True) if model.packed else (False,))
        for machine in MACHINES
    ]


def choose_cases() -> list[Case]:
    """Choose one case of each model in which the drive counts. The weight of assumptions is shown with these."""
    laptop, workstation = MACHINES[1], MACHINES[3]
    return [
        Case(MODELS["Qwen3-30B-A3B"], laptop),
        Case(MODELS["gpt-oss-120b"], laptop, packed=True),
        Case(MODELS["DeepSeek-V3"], workstation, packed=True),
        Case(MODELS["Qwen3-32B"], laptop),
    ]


def change_machine(case: Case, **changes: Any) -> Case:
    """Put ``case`` on a machine with ``changes``."""
    return replace(case, machine=replace(case.machine, **changes))


def scale(field: str, factor: float) -> Callable[[Case], Case]:
    """Make a change that multiplies one number of the machine."""
    return lambda case: change_machine(case, **{field: getattr(case.machine, field) * factor})


def scale_budget(factor: float) -> Callable[[Case], Case]:
    """Make a change that multiplies the budget, but leaves it large enough for the model."""

    def change(case: Case) -> Case:
        outline = outline_of(case.model, case.packed, case.machine.drives)
        budget = int(case.machine.host_memory(outline.total_bytes) * factor)
        return replace(case, budget=max(budget, least_host(outline, MemoryBudgets(0))))

    return change


class Elsewhere(NamedTuple):
    """A run like ``case`` with another engine: its ``reported`` speed, its hit ratio ``hits`` if known, and the
    source ``where``."""

    what: str
    case: Case
    reported: str
    hits: str
    where: str


ELSEWHERE = (
    Elsewhere(
        "128 GB unified memory, drive 5.94 GB/s, 107 GB for weights",
        Case(COMPARED, replace(MACHINES[2], drive_speed=5.94e9), packed=True, budget=int(107e9)),
        "0.8 to 1.0",
        "",
        "colibri issue 486",
    ),
    Elsewhere(
        "24 GB of memory, drive 2.74 GB/s, 14 GB resident",
        Case(COMPARED, replace(MACHINES[0], drive_speed=2.74e9), packed=True, budget=int(14.1e9)),
        "0.07",
        "3 to 4%",
        "colibri pull request 3",
    ),
)

CHANGES: dict[str, Callable[[Case], Case]] = {
    "as assumed": lambda case: case,
    "more even routing (0.4 for 0.8)": lambda case: replace(case, popularity=0.4),
    "less even routing (1.2)": lambda case: replace(case, popularity=1.2),
    "half of the guesses right (50 % for 75 %)": lambda case: replace(case, precision=0.5),
    "nearly all guesses right (90 %)": lambda case: replace(case, precision=0.9),
    "no guesses": lambda case: replace(case, guess=False),
    "drive 30 % slower": scale("drive_speed", 0.7),
    "drive 30 % faster": scale("drive_speed", 1.3),
    "memory 30 % slower": scale("bandwidth", 0.7),
    "memory 30 % faster": scale("bandwidth", 1.3),
    "30 % less host memory": scale_budget(0.7),
    "30 % more host memory": scale_budget(1.3),
    "half the time besides weights": scale("besides", 0.5),
    "twice the time besides weights": scale("besides", 2.0),
    "drives and cores do not disturb each other": lambda case: change_machine(case, disturbed=False),
    "neither that, nor any time besides weights": lambda case: change_machine(case, disturbed=False, besides=0.0),
}


def curve_of(case: Case) -> Iterator[Figure]:
    """Simulate ``case`` with budgets from the least to one that holds everything, as if the machine had that memory."""
    outline = outline_of(case.model, case.packed, case.machine.drives)
    least, whole = least_host(outline, MemoryBudgets(0)), with_working_memory(outline.total_bytes)
    for share in SHARES:
        yield simulate_case(replace(case, budget=least + int(share * (whole - least))))
