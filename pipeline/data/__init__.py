"""Data sets: fetched, split, stored and read."""

from pipeline.renamed import former_names

__getattr__ = former_names(__name__)
