"""Named arrays in, named arrays out: one runtime per file, and how long each takes."""
