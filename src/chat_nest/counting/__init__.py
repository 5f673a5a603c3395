"""Token counts: a bound before the answer, a meter while it streams, and checks of the counts that providers report."""
