"""The memory that a model will need and its speed, before it is loaded. It may import all rooms but cli."""
