"""The simulator: the real planner on modelled devices, recordings of real runs, and their replay (pure)."""
