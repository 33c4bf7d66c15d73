"""The planner: events in, actions out, and the books behind it (pure). Imports tiering/policy."""
