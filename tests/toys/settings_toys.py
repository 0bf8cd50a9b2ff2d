"""What several tests of the settings share."""

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import parse


def refusal(overrides=None, recipe=None):
    """The words in which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        parse.load(recipe, overrides)
    return str(caught.value)
