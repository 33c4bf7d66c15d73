"""Summaries of pages of keys, and bounds of the attention that a page can get. Imports ``native``.

``base.py`` is the interface, ``registry.py`` the list of summaries, each in a module of its own.
"""
