"""KV pages in tiers: which are in memory, on a device, on flash; what is read next (pure)."""
