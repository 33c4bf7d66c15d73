"""The simulator: the planner that real runs use, on modelled drives, memory and devices; recordings and their replay.

    from penstock.sim import Drive, Memory, Workload, simulate

Nothing is read or computed, and equal arguments give equal outcomes. A recording that ``penstock.load(record=FILE)``
made is read by ``recorded``, and its planners are run again by ``replay`` and, for KV in pages, ``replay_kv``.
"""

from .runtime.tracing.run_recording import recorded
from .tiering.events import Action, Event
from .tiering.kv.setup import KVSetup
from .tiering.planner.arrangement import Arrangement, MemoryBudgets, Outline, arrange_memory, least_host
from .tiering.planner.planner import Planner
from .tiering.planner.setup import Setup
from .tiering.policy.drive_reading import Reading
from .tiering.sim.devices import Bus, Drive, Memory
from .tiering.sim.host_tier import Below
from .tiering.sim.kv import Context, KVLayer
from .tiering.sim.noise import Noise, Spell
from .tiering.sim.outcome import Outcome, Passed
from .tiering.sim.recorded_workload import passes_of
from .tiering.sim.recording import (
    KVStep,
    Recording,
    Step,
    first_difference,
    first_kv_difference,
    replay,
    replay_kv,
)
from .tiering.sim.simulator import simulate
from .tiering.sim.workload import Layer, Pass, Workload, decode, forward, guessing, layers_of

__all__ = [
    "Action",
    "Arrangement",
    "Below",
    "Bus",
    "Context",
    "Drive",
    "Event",
    "KVLayer",
    "KVSetup",
    "KVStep",
    "Layer",
    "Memory",
    "MemoryBudgets",
    "Noise",
    "Outcome",
    "Outline",
    "Pass",
    "Passed",
    "Planner",
    "Reading",
    "Recording",
    "Setup",
    "Spell",
    "Step",
    "Workload",
    "arrange_memory",
    "decode",
    "first_difference",
    "first_kv_difference",
    "forward",
    "guessing",
    "layers_of",
    "least_host",
    "passes_of",
    "recorded",
    "replay",
    "replay_kv",
    "simulate",
]
