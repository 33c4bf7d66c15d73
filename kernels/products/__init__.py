"""Products on the CPU that give torch's own bits, for few rows and for many. Imports the rooms above it."""
