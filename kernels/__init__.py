"""Bytes: direct I/O, memory, weight formats, products, attention. Imports no other part, and no asyncio.

At the top: the compiled library (``native``) and how it is called (``calls``). C sources are in ``csrc/``.
"""
