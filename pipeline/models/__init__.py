"""Networks: what describes one, builds it, stores it, cuts it and sizes it."""
