"""Stored prefixes of prompts: how they are named, found, admitted and evicted (pure)."""
