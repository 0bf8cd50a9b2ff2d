"""The files that `promote` and `verify_served` leave: what went live, and what the endpoint answered."""

from __future__ import annotations

PROMOTION_FILE = "promotion.json"
SERVED_FILE = "served.json"
