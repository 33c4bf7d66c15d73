"""The KV cache in tiers: transformers' cache and attention interfaces on pages, in memory and on flash. Rooms in import
order: ``pages``, ``views``, ``cache``, ``attention``, ``selectors``; ``adapter.py`` joins them."""
