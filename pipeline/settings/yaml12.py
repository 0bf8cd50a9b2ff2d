"""Read YAML as YAML 1.2 does, so that a setting means what it looks like.

PyYAML follows YAML 1.1, where ``off`` is false and ``1e-3`` is text. Here only ``true`` and ``false`` are booleans, and
``1e-3`` is a number. DVC reads params.yaml by the same rules.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_BOOLEAN, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans and floats."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read(text: str) -> Any:
    """Return the one document in `text` as plain Python values. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
