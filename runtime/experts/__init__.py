"""Experts of a mixture: leased, computed fast or by their module's own code, summed in order, guessed ahead.

It imports tiers, routing and rooms before them; not modules or the engine.
"""
