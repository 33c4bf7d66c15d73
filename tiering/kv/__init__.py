"""KV pages in tiers: which are in memory, which lie on flash, and what is read next."""
