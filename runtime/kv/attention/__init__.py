"""Attention on pages: the function that transformers calls, few queries, pages on a device, the trial against eager
code. Imports ``pages`` and ``views``."""
