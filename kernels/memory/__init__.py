"""Where bytes lie in host memory: pages, arenas, bounds for the heap. Imports nothing of ours."""
