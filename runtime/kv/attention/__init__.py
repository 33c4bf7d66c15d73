"""Attention on pages: transformers' interface, few rows, pages on a device, the trial against eager code."""
