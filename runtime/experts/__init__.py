"""Experts of a running model, through transformers' experts interface."""
