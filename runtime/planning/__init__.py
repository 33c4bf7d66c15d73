"""What a model will need and how fast it will run, before it is loaded."""
