"""The ledger: reserve before the answer, settle once after it, even if the store is down or the process dies."""
