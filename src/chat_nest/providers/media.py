"""Images and files in the formats of providers.

The base64 of an image is put into a request unchanged, without a search for characters that JSON has to escape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Raw
from msgspec.structs import replace

from chat_nest.core.messages import Attachment, Message
from chat_nest.counting.images import is_text_only

FROM_TOOLS = "What the tools gave:"


def base64(attachment: Attachment) -> Raw:
    """Return the base64 as a JSON string."""
    return Raw(b'"%b"' % attachment.data)


def data_url(attachment: Attachment) -> Raw:
    """Return a JSON string with a data URL (RFC 2397), or the URL that the client gave."""
    if attachment.url:
        return Raw(b'"%b"' % attachment.url.replace("\\", "%5C").replace('"', "%22").encode())
    return Raw(b'"data:%b;base64,%b"' % (attachment.media_type.encode(), attachment.data))


def taken(model: str, *words: str) -> frozenset[str]:
    """Return `words`, the kinds of input that a provider can send: see Provider. A text-only model takes none."""
    return frozenset() if is_text_only(model) else frozenset(words)


def moved_to_user(messages: Iterable[Message]) -> Iterable[Message]:
    """Return the messages, with the images of tool results moved to a user's message after these results.

    For formats in which such a result is only text.
    """
    messages = tuple(messages)
    for message in messages:
        if message.role == "tool" and message.attachments:
            return _moved(messages)
    return messages


def _moved(messages: Iterable[Message]) -> Iterator[Message]:
    images: list[Attachment] = []
    for message in messages:
        if images and message.role != "tool":
            yield Message(role="user", content=FROM_TOOLS, attachments=tuple(images))
            images = []
        if message.role == "tool" and message.attachments:
            images += [replace(each, at=len(FROM_TOOLS)) for each in message.attachments]
            message = replace(message, content=message.content or FROM_TOOLS, attachments=())  # noqa: PLW2901
        yield message
    if images:
        yield Message(role="user", content=FROM_TOOLS, attachments=tuple(images))
