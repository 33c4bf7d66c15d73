"""What a step led to, and whether two outcomes are the same."""
