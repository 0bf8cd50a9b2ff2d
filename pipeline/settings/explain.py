"""What is wrong with settings, as sentences: setting, value, what is allowed, near miss."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import near_miss
from pipeline.settings.data import DatasetSplit
from pipeline.settings.schema import Settings, fields


def sentences(error: ValidationError) -> list[str]:
    """Each setting that does not hold, as a sentence: setting, value, what is allowed, near miss."""
    found: dict[str, str] = {}
    for problem in error.errors():
        path = _real_path(problem["loc"])
        where = ".".join(path)
        if not path:
            found[problem["msg"]] = problem["msg"].removeprefix("Value error, ")
        elif where not in found:
            found[where] = _sentence(path, problem)
        elif problem["type"] != "too_short":  # the branches of a union each complain about the same value
            found[where] += f", or: {problem['msg']}"
    return list(found.values())


def _sentence(path: list[str], problem: Any) -> str:
    """One problem that pydantic found, with its cure."""
    where, value, message = ".".join(path), problem["input"], problem["msg"]
    if problem["type"] == "extra_forbidden":
        key, known = path[-1], list(_section_at(path[:-1]).model_fields)
        place = f"{'.'.join(path[:-1])} has" if path[:-1] else "the settings have"
        return f"{where}: {place} no {key!r}; allowed: {', '.join(known)}{_near_setting(where, key, known)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "model_type":
        inside = list(_section_at(path).model_fields)
        return f"{where} is {value!r}: it holds settings of its own, such as {where}.{inside[0]}"
    if problem["type"] == "literal_error":
        message += near_miss(str(value), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return f"{where} is {value!r}: {message}"


def _near_setting(where: str, key: str, known: list[str]) -> str:
    """The near miss among `known`, or else a setting elsewhere that ends as `where` does."""
    elsewhere = [setting for setting, _ in fields() if setting.endswith(f".{where}")]
    return near_miss(key, known) or (f"; did you mean {elsewhere[0]!r}?" if elsewhere else "")


def _section_at(path: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Settings
    for part in path:
        annotation = section.model_fields[part].annotation if part in section.model_fields else DatasetSplit
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else section
    return section


def _real_path(location: tuple[int | str, ...]) -> list[str]:
    """`location` without the names of union branches that pydantic puts behind a leaf."""
    path: list[str] = []
    section: Any = Settings
    for part in map(str, location):
        path.append(part)
        fields = getattr(section, "model_fields", None)
        if fields is None or part not in fields:
            if section == dict[str, DatasetSplit]:
                section = DatasetSplit
                continue
            break
        section = fields[part].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)) and section != dict[str, DatasetSplit]:
            break
    return path
