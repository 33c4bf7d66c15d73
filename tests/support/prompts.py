"""A prompt for the checkpoint whose tokenizer makes one token of each word."""

PROMPT = "w5 w6 w7 w8"
IDS = [5, 6, 7, 8]
"""The token ids of ``PROMPT``."""
