"""A model's modules bound to its weights: pinned, leased while they run, or computed in parts.

It imports tiers, experts and rooms before them; not the engine.
"""
