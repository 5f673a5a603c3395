"""The places of images and files in a message's text, and the text that replaces one that is not sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from chat_nest.core.messages import Attachment, Message

LEFT_OUT = "[An image stood here. It was left out.]"
FILE_LEFT_OUT = "[A file stood here. It was left out.]"


def needs(attachment: Attachment) -> Iterator[str]:
    """Yield what a provider must accept for this attachment to be sent: words of `Provider.takes`."""
    yield "files" if attachment.is_file else "images"
    if attachment.url:
        yield "file_urls" if attachment.is_file else "image_urls"


def all_needs(messages: Sequence[Message]) -> set[str]:
    return {need for message in messages for attachment in message.attachments for need in needs(attachment)}


def first_new(messages: Sequence[Message]) -> int:
    """Return the index of the client's newest input: its last message, or all results of the last tool calls."""
    last = max((at for at, message in enumerate(messages) if message.role in ("user", "assistant")), default=0)
    return last + 1 if messages and messages[last].role == "assistant" else last


def keeping(message: Message, keep: Callable[[Attachment], bool]) -> Message:
    """Return the message with a short text in the place of each attachment that `keep` rejects."""
    content, moved, kept = message.content, 0, list[Attachment]()
    for attachment in message.attachments:
        at = attachment.at + moved
        if keep(attachment):
            kept.append(replace(attachment, at=at))
            continue
        mark = FILE_LEFT_OUT if attachment.is_file else LEFT_OUT
        if at < len(content):
            mark += "\n"
        elif content and not content.endswith("\n"):
            mark = "\n" + mark
        content = content[:at] + mark + content[at:]
        moved += len(mark)
    return replace(message, content=content, attachments=tuple(kept))


def without(message: Message) -> Message:
    """Return the message as text only."""
    return keeping(message, lambda _: False) if message.attachments else message


def segments(message: Message) -> list[str | Attachment]:
    """Return the message's texts and attachments in order; a text has no line break before an attachment."""
    found: list[str | Attachment] = []
    start, content = 0, message.content
    for attachment in message.attachments:
        text = content[start : attachment.at]
        if attachment.at < len(content):
            text = text.removesuffix("\n")
        found += [text, attachment] if text.strip() else [attachment]
        start = attachment.at
    return [*found, content[start:]] if content[start:].strip() or not found else found
