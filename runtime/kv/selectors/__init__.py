"""Page selectors: certified attention, Quest, and modes that drop pages. Imports ``pages`` and ``views``."""
