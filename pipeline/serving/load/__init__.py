"""Load: sent, measured and reported, and the serving settings found with it."""
