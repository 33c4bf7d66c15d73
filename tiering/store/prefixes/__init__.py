"""Stored prefixes: their files, folder, index and quota. Imports tiering/prefix for decisions, bundle for the store."""
