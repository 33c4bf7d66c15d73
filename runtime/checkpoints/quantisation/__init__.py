"""Quantised weights as checkpoints of all kinds store them: layouts, and an account of every tensor. Imports
``files``."""
