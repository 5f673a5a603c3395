"""Make the gate of a challenge from its settings."""

from __future__ import annotations

from collections.abc import Sequence

from chat_nest.challenges.gate import ChallengeGate
from chat_nest.challenges.proof_of_work import ProofOfWork
from chat_nest.challenges.services import Service
from chat_nest.challenges.settings import Challenge, check_challenge
from chat_nest.challenges.solved import Verifier
from chat_nest.core.protocols import Now
from chat_nest.limits.profiles import Profiles


def make_gate(challenge: Challenge, secrets: Sequence[str | bytes], rules: Profiles, now: Now) -> ChallengeGate:
    """Return the gate, which needs `attach` before its first request. `secrets` are those of the visitors.

    Raises ValueError, which begins with the name of a wrong setting, and without the extra `altcha` if it is needed.
    """
    check_challenge(challenge)
    verifier: Verifier
    if challenge.kind == "proof_of_work":
        verifier = ProofOfWork(secrets, challenge.milliseconds, now)
    else:
        verifier = Service(challenge)
    return ChallengeGate(challenge, verifier, rules, now)
