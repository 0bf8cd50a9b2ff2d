"""Fewer channels, blocks, ranks or weights."""
