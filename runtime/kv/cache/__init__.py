"""transformers' cache classes on pages."""
