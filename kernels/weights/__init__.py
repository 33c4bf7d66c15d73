"""A weight in a packed format that looks like a torch tensor. Imports kernels/formats and above."""
