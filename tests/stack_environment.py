"""What the stack of tests/integration has changed in the environment, for the tests after it in the same process."""

BEFORE: dict[str, str | None] = {}
"""Variable -> its value before; None for one that was not set. Empty while no stack has been made."""
