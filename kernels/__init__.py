"""Touches bytes: direct I/O, arenas, products. Knows no tiers and no asyncio."""
