"""This computer: its processor and GPU, and where a workspace keeps things."""
