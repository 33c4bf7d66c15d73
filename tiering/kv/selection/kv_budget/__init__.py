"""Attention with a fixed budget of KV pages: which pages stay or are read, and how many per layer (pure)."""
