"""Attention with a fixed budget of KV pages (pure): which of them stay or are looked at, and how many of each layer."""
