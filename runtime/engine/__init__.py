"""The engine of one loaded model: it builds the tiers, loads them, reports on them and takes them down.

It imports every room before it and knows nothing of loading. Modules and experts never import it.
"""
