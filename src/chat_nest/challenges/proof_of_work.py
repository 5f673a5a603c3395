"""Proof of work by the ALTCHA protocol, version 2: https://altcha.org/docs/v2.

A challenge names the first half of a key that PBKDF2 derives from a counter, and the client tries counters from 0 until
a key begins with it. The server draws the counter from the upper half of 1 to `most`: so the work is at most twice the
least, and a client can show its progress. Making a challenge costs one derivation, checking a solution one HMAC.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from secrets import randbelow
from typing import Any

from chat_nest.challenges.solved import Solved
from chat_nest.core.errors import ChallengeFailed
from chat_nest.core.extras import explain
from chat_nest.core.protocols import Now
from chat_nest.identity.signed_ids import derived_key

ALGORITHM = "PBKDF2/SHA-256"
COST = 1_000
"""Iterations for each counter."""
COUNTERS_PER_SECOND = 600
"""The counters that a phone tries, with one worker: see docs/visitors.md for the measurement."""
SECONDS = 600
"""How long a challenge can be solved."""
LONGEST = 4_096
"""Characters of a solution."""


class ProofOfWork:
    """Makes and checks proofs of work. `milliseconds` is the time that a phone needs on average.

    Raises ValueError without the extra `altcha`.
    """

    def __init__(self, secrets: Sequence[str | bytes], milliseconds: int, now: Now = time.time) -> None:
        try:
            self._altcha: Any = import_module("altcha")  # here: only servers with this challenge need it
        except ImportError as error:
            raise ValueError(explain("proof of work needs", "altcha", error)) from None
        self._keys = [
            (derived_key(secret, "proof of work"), derived_key(secret, "solutions of proof of work"))
            for secret in secrets
        ]
        self.most = max(2, milliseconds * COUNTERS_PER_SECOND * 4 // 3_000)
        """The highest counter of a solution; the average is three quarters of it."""
        self._now = now

    def make(self, owner: str) -> Mapping[str, Any]:
        """Return a challenge for the visitor with this key. Takes about 0.3 ms."""
        least = self.most // 2
        secret, key_secret = self._keys[0]
        made = self._altcha.create_challenge(
            ALGORITHM,
            COST,
            counter=least + randbelow(self.most - least + 1),
            expires_at=int(self._now()) + SECONDS,
            data={"for": owner, "most": self.most},
            hmac_secret=secret,
            hmac_key_secret=key_secret,
        )
        return {"challenge": made.to_dict()}

    async def verify(self, solution: str, owner: str) -> Solved:
        """Return what a correct solution is. Raises ChallengeFailed for any other."""
        if len(solution) > LONGEST:
            raise ChallengeFailed
        for secret, key_secret in self._keys:
            found = self._altcha.verify_solution(solution, secret, hmac_key_secret=key_secret)
            if found.verified:
                break
            if found.expired:
                raise ChallengeFailed("The challenge has expired: get another one")
        else:
            raise ChallengeFailed
        parameters = self._altcha.Payload.from_base64(solution).challenge.parameters
        if parameters.data["for"] != owner:  # signed, as the whole challenge is
            raise ChallengeFailed("The challenge was made for another visitor, or in another network: get another one")
        return Solved(id=parameters.nonce, seconds=SECONDS + 60)

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""
