"""What `pbr NAME` does, one module per command (see `pbr_jax.cli`)."""
