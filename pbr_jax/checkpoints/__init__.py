"""Public weight formats to and from our parameter trees."""
