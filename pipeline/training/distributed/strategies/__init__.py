"""How processes share a network, one strategy per file."""
