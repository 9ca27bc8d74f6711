"""From the command line and a configuration file to a checked `Config`."""
