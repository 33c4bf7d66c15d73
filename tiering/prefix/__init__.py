"""Prefixes of prompts whose keys and values are on flash: how they are named, found, admitted and evicted (pure)."""
