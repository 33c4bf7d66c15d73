"""Meets people and transformers: configuration, packing, model adapters, the engine, the command line."""
