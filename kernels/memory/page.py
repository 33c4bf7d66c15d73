"""The page: the unit of direct I/O and of slots in memory (pure)."""

PAGE = 4096
"""Bytes. Offsets in files, lengths and addresses of direct I/O are multiples of it, and so are extents and slots."""
