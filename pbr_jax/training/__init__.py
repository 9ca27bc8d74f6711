"""Training: state, step, optimizer, checkpoints, console, report."""
