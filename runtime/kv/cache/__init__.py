"""transformers' cache classes on pages, and the KV tier that the caches of a model share. Imports ``pages`` and
``views``."""
