"""Models whose blocks keep what a residual plan says."""
