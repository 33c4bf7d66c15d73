"""What is where, and how it gets there. Imports kernels; the deciding rooms import the standard library only.

At the top: units, errors, events and progress, the words that all rooms share.
"""
