"""Which pages attention reads: certified, Quest, and modes that drop pages."""
