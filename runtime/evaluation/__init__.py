"""How far a model's outputs are from the original's: perplexity, divergence, calibration of formats."""
