"""Flyweight: a heavyweight teacher in, a flyweight proxy out, with the evidence.

This package works without Airflow. Start reading at `graph.py` (what runs after what), then `stages/`.
"""

import sys

from pipeline.renamed import Finder

__version__ = "0.1.0"

sys.meta_path.insert(0, Finder())
