"""Weight formats: encode a matrix, decode it, multiply by it as it is stored. One module per format.

``base.py`` is the interface of a format, ``registry.py`` the list of formats. Imports kernels/products and above.
"""
