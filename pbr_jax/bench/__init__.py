"""Measurements of the commands `pbr bench ...`."""
