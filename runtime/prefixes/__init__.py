"""Stored prompts: keys and values that outlive the process. Imports any room above it except ``packing``."""
