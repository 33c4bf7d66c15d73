"""The tiers of a running model: bridge, leases, the host tier, memory pressure, tensors on slots.

It imports configuration, measurements, tracing and KV; not the device tier, experts or modules.
"""
