"""Measurements and limits of this host: drives, memory, processors, control groups.

Imports kernels/io and kernels/memory.
"""
