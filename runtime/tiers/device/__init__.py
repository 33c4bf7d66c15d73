"""The device tier: its bridge, the copies from host memory, the way past host memory, and who computes misses.

It imports ``runtime.tiers`` and rooms before it.
"""
