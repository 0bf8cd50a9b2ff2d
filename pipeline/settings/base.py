"""What every group of settings is made of: sections that refuse unknown keys, and components."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline import components

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: immutable, and without room for a misspelt key."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Component(BaseModel):
    """``{name: kd, temperature: 4}``: a component's name, and its constructor's arguments beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(description="File name in the component folder, or 'package.module:Name' of your own.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings beside the name: what the constructor takes."""
        return dict(self.model_extra or {})

    def build(self, kind: str, setting: str = "") -> Any:
        """Return the component made with these arguments. Raises `SettingsError`, which names `setting` if it is given."""
        return components.build(kind, self.name, self.arguments, setting)
