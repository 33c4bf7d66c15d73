"""The page at ``/``: a chat, and what the machine does."""
