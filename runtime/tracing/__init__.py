"""Traces and recordings of a run: notes, files, replay."""
