"""The host tier of a running model: bridge, leases, engine, memory pressure, tensors on slots."""
