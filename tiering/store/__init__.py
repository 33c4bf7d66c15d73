"""Files of the store: bundles of weights, and stored prefixes."""
