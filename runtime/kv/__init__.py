"""The KV cache in tiers: transformers' own Cache and attention seams on pages in memory and on flash."""
