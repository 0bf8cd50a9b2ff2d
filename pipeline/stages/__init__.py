"""One stage per file: wiring only."""
