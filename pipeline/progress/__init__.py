"""Events of a running stage, and the ways to show them."""
