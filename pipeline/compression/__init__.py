"""A network made smaller, and written in fewer bits."""
