"""What to read ahead: the order of modules, guesses of experts, and whether guessing pays (pure)."""
