"""Products with packed weights, and their decoding, for tensors on a CUDA device.

One module per format, as kernels/formats has them; what one is to the rest: ``base.py``; which there are:
``registry.py``, which loads them when a device first asks. Kernels are in Triton where torch has nothing.
"""
