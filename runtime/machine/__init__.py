"""Measurements of this machine, kept in the user's cache folder: drives, timings, bit trials.

It imports configuration and the lower parts.
"""
