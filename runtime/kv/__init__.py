"""The KV cache in tiers: transformers' cache and attention interfaces on pages in memory and on flash."""
