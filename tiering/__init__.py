"""Decides what is where: blocks, budgets, policies, the planner, the bundle on flash; and drives those decisions."""
