"""One run in memory: parts, state, step, optimizer, loop."""
