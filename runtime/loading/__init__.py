"""``load`` and ``wrap``: from a source and a configuration to a transformers model on tiers."""
