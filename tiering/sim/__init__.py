"""The planner against modelled devices: simulated runs, recordings of real ones, and their replay (pure)."""
