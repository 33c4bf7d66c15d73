"""Pages of keys and values: how they are stored, and attention on them as they are stored.

One module per format. What a format is to the rest: ``base.py``; which there are: ``registry.py``. Attention of many
rows, piece by piece: ``pieces.py``.
"""
