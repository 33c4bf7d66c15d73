"""Devices that a tier of memory lies on, and copies to them."""
