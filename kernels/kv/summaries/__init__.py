"""Summaries of pages of keys, and bounds of the attention that a page can get.

One module per summary. What one is to the rest: ``base.py``; which there are: ``registry.py``.
"""
