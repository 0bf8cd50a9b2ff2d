"""Data sets: fetched, split, stored and read."""
