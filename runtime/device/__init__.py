"""The device tier: what it reads from the host tier, and who computes on it."""
