"""What signals, forks and the end of the interpreter do to a running model. Imports nothing else of the package."""
