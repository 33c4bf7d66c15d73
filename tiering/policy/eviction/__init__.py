"""Eviction policies: they rank resident blocks, the first to evict first (pure).

A policy is told which blocks are used. The planner skips blocks that are leased or loading.
Imports tiering/policy/prefetch.
"""

from .interface import Eviction, Policy
from .registry import EVICTION

__all__ = ["EVICTION", "Eviction", "Policy"]
