"""Which experts tokens go through: routers, recorded routes, and how well a model suits offloading.

It imports checkpoints, tracing's files and the lower parts; not experts or tiers.
"""
