"""Runs of a text through a model: quality of formats, logits kept for comparison, calibration. May import packing."""
