"""Views on pages: sequences, access to pages, attention to the pages of a sequence, tensors and masks without storage,
the interface of page selectors. Imports ``pages``."""
