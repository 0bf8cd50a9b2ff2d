"""Training in several processes: launch them, tell them apart, share a network."""
