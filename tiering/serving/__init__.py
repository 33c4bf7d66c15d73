"""Decides which requests of a server run, wait or are refused (pure)."""
