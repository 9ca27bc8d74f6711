"""What the commands `pbr bench ...` measure."""
