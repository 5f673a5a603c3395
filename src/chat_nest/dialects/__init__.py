"""One file a wire dialect: parse a body, encode batches, refuse."""
