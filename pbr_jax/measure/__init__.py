"""Measures the device at hand: times of functions, memory in use, and how figures are written."""
