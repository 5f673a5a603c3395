"""Where counters live: one contract, several engines."""
