"""Which KV pages attention reads, and in which format old pages are kept (pure)."""
