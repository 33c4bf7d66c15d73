"""Page selectors: certified attention, Quest, and modes that drop pages. Imports ``pages`` and ``views``.

CONTRIBUTING.md says how to add one, views/selector.py is its interface, and tiering/kv/selection decides.
"""
