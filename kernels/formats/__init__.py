"""Weight formats: how the numbers of a matrix are stored in a block, and products with it as it is stored.

One module per format. What a format is to the rest: ``base.py``; which there are: ``registry.py``.
"""
