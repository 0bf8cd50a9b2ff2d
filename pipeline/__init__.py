"""Flyweight: a heavyweight teacher in, a flyweight proxy out, with the evidence.

This package works without Airflow. Start reading at `graph.py` (what runs after what), then `stages/`.
"""

__version__ = "0.1.0"
