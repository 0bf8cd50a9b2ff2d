"""The JSON files that stages leave for each other, one typed class per file."""
