"""Runnable configurations: Python files with `get_config(variant) -> Config` (see `common`)."""
