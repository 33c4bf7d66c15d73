"""Devices with memory of their own, and copies to them. Imports kernels/memory and the top level."""
