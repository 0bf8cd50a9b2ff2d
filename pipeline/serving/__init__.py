"""Triton: talk to it, change what is live, measure it."""
