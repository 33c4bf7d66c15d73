"""The device tier above the host tier: what it reads, and which side computes experts."""
