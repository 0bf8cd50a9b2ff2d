"""Numbers from answers: metrics, statistics and the gate."""
