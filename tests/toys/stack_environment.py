"""What the stack of tests/integration has changed in the environment, for the tests after it in the same process."""

CHANGED: dict[str, tuple[str | None, str | None]] = {}
"""Variable -> (its value before, the stack's); None for not set. Empty while no stack has been made."""
