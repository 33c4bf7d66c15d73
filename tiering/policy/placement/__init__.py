"""What is pinned, streamed and cached for a budget, and what a smaller budget leaves (pure)."""
