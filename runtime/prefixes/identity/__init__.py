"""What a model computes keys and values with, described as it is now. Imports any room before ``prefixes``."""
