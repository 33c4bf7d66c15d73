"""Host memory: pages, arenas, bounds for the heap. Imports nothing else of the package."""
