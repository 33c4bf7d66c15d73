"""Files on flash: bundles of weights, stored prefixes."""
