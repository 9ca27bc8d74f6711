"""Small weights that the package ships, and the scripts that made them."""
