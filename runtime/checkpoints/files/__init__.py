"""Files of a checkpoint: which hold weights, what they hold, small files, downloads, digests. Imports no other room of
``runtime``."""
