"""Messages, deltas, usage, errors, claims, and the protocols of the parts that a user can replace."""
