"""Performs the planner's actions: the driver, its ports, a background task. The only threads outside store/."""
