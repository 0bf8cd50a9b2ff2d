"""A package, so that what is made for it ends with it: the stack, and what it says in the environment."""
