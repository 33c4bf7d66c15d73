"""Pages of keys and values: their formats, summaries of keys, attention on pages. Imports the rooms above it.

``base.py`` is the interface of a KV format, ``registry.py`` the list of formats.
"""
