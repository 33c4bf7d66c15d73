"""Where bytes lie in host memory: arenas, and bounds for the heap. Imports kernels/io."""
