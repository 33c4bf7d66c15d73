"""Which resident block goes first (pure). Policies are told what is used and rank what is here; they never decide
what may go: the planner skips what is leased or loading."""

from .policy import Eviction, Policy
from .registry import EVICTION

__all__ = ["EVICTION", "Eviction", "Policy"]
