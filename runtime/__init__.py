"""Meets people and transformers: configuration, packing, the engine, KV, the command line.

Imports tiering and kernels.
"""
