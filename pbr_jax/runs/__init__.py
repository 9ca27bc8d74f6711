"""A run on disk: opening, checkpoints, metrics, signals, and what the console shows."""
