"""Training in several processes: launching them, what each does, and how they share a network (one strategy a file)."""
