"""Change what is live, step by step, each step in the ledger."""
