"""Events of a running stage, and the ways to show them."""

from pipeline.renamed import former_names

__getattr__ = former_names(__name__)
