"""Decoding and products of packed weights on a CUDA device. One module per format of kernels/formats.

``base.py`` has the interface, ``registry.py`` the list of formats, loaded when a device first needs one. Kernels are in
Triton where torch has none. Imports kernels/formats and above.
"""
