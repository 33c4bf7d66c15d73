"""Stored prompts: keys and values that outlive the process."""
