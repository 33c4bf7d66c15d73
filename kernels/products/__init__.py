"""CPU products with exactly torch's bits, for few rows and for many. Imports the rooms above it."""
