"""What is measured on the device at hand: times of functions, and memory in use."""
