"""MoE routing: traces of it, the routers of a model, reports on how well a cache would do."""
