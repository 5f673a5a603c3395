"""Signatures of answers: with `signed_turns`, a client can't put words into the model's mouth.

A signature is an HMAC-SHA-256 over the caller, the question and the answer's text. So the same answer is not valid
after another question, or from another caller. Texts are hashed as UTF-16, so that a surrogate pair that arrives in two
events hashes like the one character in the client's copy.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256

from chat_nest.core.deltas import Batch, TextDelta
from chat_nest.core.errors import TurnNotSigned
from chat_nest.core.messages import Caller, ChatRequest, Message
from chat_nest.core.protocols import BatchEncoder

VERSION = "v1"
UNSIGNED = "has an answer without its signature: send each answer unchanged, after its question, with its `signature`"


class Signatures:
    """Signs with the first secret, and accepts the signatures of all of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        keys = [sha256(b"chat-nest signed turns " + secret).digest() for secret in secrets]
        self._keys = {sha256(key).hexdigest()[:8]: key for key in keys}

    def start(self, caller: Caller, request: ChatRequest, encoder: BatchEncoder) -> SignedAnswer:
        """Return the encoder that also signs the answer to this request."""
        question = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
        name, key = next(iter(self._keys.items()))
        return SignedAnswer(encoder, name, _begun(key, caller, question))

    def check(self, caller: Caller, request: ChatRequest) -> None:
        """Raise TurnNotSigned unless each answer in the history is one that this caller got to the question before it.

        Answers that this server kept itself need no signature.
        """
        question: str | None = None
        for message in request.messages:
            if message.role == "user":
                question = message.content
            elif message.role == "assistant" and not message.ours and not self._is_valid(caller, question, message):
                raise TurnNotSigned(UNSIGNED, field=request.messages_field)

    def _is_valid(self, caller: Caller, question: str | None, message: Message) -> bool:
        version, _, rest = message.signature.partition(".")
        key = self._keys.get(rest.partition(".")[0])
        if version != VERSION or key is None or question is None or message.tool_calls:
            return False
        mac = _begun(key, caller, question)
        mac.update(_bytes(message.content))
        return hmac.compare_digest(
            _text(rest.partition(".")[0], mac).encode(), message.signature.encode("utf-8", "replace")
        )


class SignedAnswer:
    """A BatchEncoder that adds the text of each batch to the signature."""

    def __init__(self, encoder: BatchEncoder, key: str, mac: hmac.HMAC) -> None:
        self.number = encoder.number
        self._encode = encoder.encode
        self._key = key
        self._mac = mac

    def encode(self, batch: Batch) -> bytes:
        for delta in batch:
            if type(delta) is TextDelta:
                self._mac.update(_bytes(delta.text))
        return self._encode(batch)

    def signature(self) -> str:
        """Return the signature of the text so far."""
        return _text(self._key, self._mac)


def _begun(key: bytes, caller: Caller, question: str) -> hmac.HMAC:
    asked = sha256(_bytes(question)).digest()
    return hmac.new(key, b"%b %b " % (caller.key.encode(), asked), "sha256")


def _text(key: str, mac: hmac.HMAC) -> str:
    return f"{VERSION}.{key}.{urlsafe_b64encode(mac.digest()).decode().rstrip('=')}"


def _bytes(text: str) -> bytes:
    """Return the text as a client sends it back: `dialects.fields.text` replaces NUL."""
    return text.replace("\x00", "\ufffd").encode("utf-16-le", "surrogatepass")
