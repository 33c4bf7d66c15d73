"""Packed weights: a weight in a packed format that behaves like a torch tensor.

Imports kernels/formats, cuda and above.
"""
