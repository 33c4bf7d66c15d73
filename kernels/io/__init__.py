"""Bytes to and from files: direct reads and writes, by threads or io_uring.

Imports kernels/memory and the top level.
"""
