"""Images and files in the parts of a message, for all formats.

An error is noted in the `flaw` of an image or file: in an older message it must not end the conversation.
"""

from __future__ import annotations

import re
from binascii import Error, a2b_base64
from collections.abc import Callable
from typing import Any, Final, get_args

from msgspec.structs import replace

from chat_nest.core.attachments import without
from chat_nest.core.errors import BadRequest
from chat_nest.core.held_text import Held
from chat_nest.core.media import IMAGES, MAX_UNSEEN, MEDIA_TYPES, PDF, decoded_size, is_base64, look, pages
from chat_nest.core.messages import Attachment, Detail, Message, Role
from chat_nest.dialects import fields as read
from chat_nest.dialects.strict_json import is_array, is_object

MAX_URL: Final = 2_048
MAX_FILE_NAME: Final = 256
KINDS: Final = "must be a PNG, JPEG, WebP or GIF image, or a PDF"
NOT_HERE: Final = "is not offered here: send the image or file itself, in base64"
DETAILS: Final = get_args(Detail)

_DATA_URL: Final = re.compile(r"data:([^,;]*)((?:;[^,;]*)*?)(;base64)?,")
_TEXTS: Final = re.compile(
    r"text/.*|application/(?:json|xml|yaml|x-yaml|toml|javascript|x-ndjson)|(?!image/).*\+(?:json|xml)"
)
_BREAKS: Final = str.maketrans("", "", "\r\n")

MediaPart = Attachment | str
"""An image or PDF; or the text of a text file."""


class MessageParts:
    """Collects the parts of one message in order.

    Texts become paragraphs, with a note of each attachment between them.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._attachments: list[Attachment] = []
        self._length = 0

    def say(self, text: str) -> None:
        self._length += len(text) + bool(self.texts)
        self.texts.append(text)

    def attach(self, found: MediaPart) -> None:
        if isinstance(found, str):
            self.say(found)
        else:
            self._attachments.append(replace(found, at=self._length + bool(self.texts)))

    def __bool__(self) -> bool:
        return bool(self.texts or self._attachments)

    def message(self, role: Role, field: str, **more: Any) -> Message:
        """Return the message. Models accept images from users and tools: an assistant's image becomes a short text."""
        content = "\n".join(self.texts)
        found = tuple(replace(each, at=len(content)) if each.at > len(content) else each for each in self._attachments)
        if found and role in ("system", "developer"):
            raise BadRequest("must be text", field=found[0].field or field)
        message = Message(role=role, content=content, attachments=found, **more)
        return without(message) if role == "assistant" else message


def read_parts(value: Any, field: str, read_part: Callable[[dict[str, Any], str, MessageParts], None]) -> MessageParts:
    """Read a string, or an array of parts; `read_part` gets each part with its field."""
    parts = MessageParts()
    if not is_array(value):
        parts.say(read.text(value, field))
        return parts
    for index, item in enumerate(read.array(value, field, read.MAX_PARTS)):
        at = f"{field}[{index}]"
        read_part(read.table(item, at), at, parts)
    return parts


def openai_part(part: dict[str, Any], field: str, parts: MessageParts) -> None:
    """Read one part of OpenAI's chat completions. https://platform.openai.com/docs/api-reference/chat/create"""
    match part.get("type"):
        case "text":
            parts.say(read.text(part.get("text"), f"{field}.text"))
        case "image_url":
            image, at = part.get("image_url"), f"{field}.image_url"
            if is_object(image):
                parts.attach(from_url(image.get("url"), f"{at}.url", detail=detail(image, at)))
            else:
                parts.attach(from_url(image, at))
        case "file":
            at = f"{field}.file"
            file = read.table(part.get("file"), at)
            parts.attach(from_file(file, at, "file_data", "filename", id="file_id"))
        case "refusal":
            parts.say(read.text(part.get("refusal"), f"{field}.refusal"))
        case "input_audio":
            parts.attach(_flawed("input_audio is not offered here", f"{field}.type", "audio/*"))
        case _:
            raise BadRequest("must be text, image_url, file or refusal", field=f"{field}.type")


def from_file(fields: dict[str, Any], field: str, data: str, name: str, *, id: str = "file_id") -> MediaPart:
    """Read a file from the field called `data`: a data URL, or base64 alone."""
    if fields.get(id) is not None and fields.get(data) is None:
        return _flawed(NOT_HERE, f"{field}.{id}", PDF)
    named = file_name(fields.get(name), f"{field}.{name}")
    value, at = fields.get(data), f"{field}.{data}"
    if (isinstance(value, Held) and value.media_type is None) or (type(value) is str and not _DATA_URL.match(value)):
        return from_base64(value, None, at, name=named)
    return from_url(value, at, name=named)


def file_name(value: Any, field: str) -> str:
    return "" if value is None else read.text(value, field)[:MAX_FILE_NAME]


def media_type(fields: dict[str, Any], name: str, field: str) -> str | None:
    """Return the media type that the client claims in the field called `name`; None if it claims none."""
    value = fields.get(name)
    return None if value is None else read.text(value, f"{field}.{name}")


def detail(fields: dict[str, Any], field: str) -> Any:
    value = fields.get("detail")
    if value is not None and (type(value) is not str or value not in DETAILS):
        raise BadRequest(f"must be one of {', '.join(DETAILS)}", field=f"{field}.detail")
    return value


def from_url(value: Any, field: str, media_type: str | None = None, **more: Any) -> MediaPart:
    """Read a data URL (RFC 2397) with base64, or an https URL; `media_type` is the client's claim."""
    if isinstance(value, Held) and value.media_type is not None:
        return from_base64(value, value.media_type, field, **more)
    url = read.text(value, field)
    if match := _DATA_URL.match(url[:512]):
        payload = url[match.end() :]
        if not match[3]:
            return _flawed("must be base64 where it is a data URL", field, match[1])
        return from_base64(payload, match[1] or media_type, field, **more)
    said = media_type or "image/*"
    if not url.startswith("https://"):
        return _flawed("must be a data URL, or an https URL", field, said)
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return _flawed(f"must be at most {MAX_URL} characters of ASCII where it is an https URL", field, said)
    kind = PDF if said == PDF else "image/*"
    return Attachment(at=0, media_type=kind, url=url, pages=MAX_UNSEEN if kind == PDF else 0, field=field, **more)


def from_base64(value: Any, media_type: str | None, field: str, *, name: str = "", detail: Any = None) -> MediaPart:
    """Decode base64. The first bytes decide the media type: clients often send a wrong one."""
    held = value.text if isinstance(value, Held) else None
    if held is None:
        text = read.text(value, field)
        data = (text.translate(_BREAKS) if "\n" in text else text).encode("ascii", "replace")
    else:
        data = bytes(held.data)
    said = (media_type or "").partition(";")[0].strip().lower()
    size = decoded_size(data) if data else 3 * held.length // 4 if held is not None else 0
    if held is not None and not data:  # not kept: too long, or one too many
        return Attachment(at=0, media_type=said or "image/*", size=size, field=field)
    if not data or len(data.rstrip(b"=")) % 4 == 1 or (held is None and not is_base64(data)):
        return _flawed("must be base64", field, said)
    if len(data) % 4:
        data += b"=" * (-len(data) % 4)
    if _TEXTS.fullmatch(said):
        return _text_file(data, name, field, said)
    seen = look(data)
    if seen.type not in MEDIA_TYPES:
        return _flawed(KINDS, field, said)
    bound = 0
    if seen.type == PDF:
        bound = held.page_bound if held is not None and held.page_bound else max(pages(data), default=1)
    return Attachment(
        at=0,
        media_type=seen.type,
        data=data,
        size=size,
        width=seen.width,
        height=seen.height,
        pages=bound,
        detail=detail if seen.type in IMAGES else None,
        name=name,
        field=field,
    )


def _text_file(data: bytes, name: str, field: str, said: str) -> MediaPart:
    try:
        text = a2b_base64(data).decode()
    except (Error, UnicodeDecodeError):
        return _flawed("must be UTF-8 where it is a text file", field, said)
    text = text.replace("\x00", "\ufffd")
    return f"{name}:\n{text}" if name else text


def _flawed(rule: str, field: str, media_type: str) -> Attachment:
    return Attachment(at=0, media_type=media_type or "image/*", field=field, flaw=rule)
