"""Bytes: direct I/O, memory, weight formats, products, attention. Imports no other part of the package, and no asyncio.

The top level has the compiled library (``native``) and helpers to call it (``calls``). The C sources are in ``csrc/``.
"""
