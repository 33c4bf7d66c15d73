"""Forecasts of one model on described devices, by simulation, and what follows from them. All of it is pure."""
