"""The evidence of a pipeline run: its table, its plots and its page."""
