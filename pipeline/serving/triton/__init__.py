"""Triton itself: its clients, its repository and the local server."""
