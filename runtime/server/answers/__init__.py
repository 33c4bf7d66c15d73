"""A model that is served, and the answers that it gives, before any interface writes them."""
