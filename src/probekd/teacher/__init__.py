"""The teacher: load, hooks, batching, and the pass that reads states."""
