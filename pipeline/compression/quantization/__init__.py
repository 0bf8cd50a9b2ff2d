"""Fewer bits: what to round, how to calibrate it, and the proof that it is worth it."""
