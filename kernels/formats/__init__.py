"""Weight formats: encode a matrix, decode it, multiply by it as stored. One module per format.

``base.py`` has the interface of a format, ``registry.py`` the list of formats. Imports kernels/products and above.
"""
