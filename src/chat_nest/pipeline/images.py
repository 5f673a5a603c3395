"""Select the images and files of a conversation that are sent to the provider.

An image or file that can't be sent is refused if it is in the newest message. In an older message a short text replaces
it, so that it can't block the rest of the conversation.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from chat_nest.core.attachments import first_new, keeping, needs
from chat_nest.core.errors import BadRequest, ImagesNotSupported
from chat_nest.core.messages import Attachment, ChatRequest
from chat_nest.limits.spec import Profile

NO_IMAGES = "images and files are not accepted from this caller: see allow_images of the profile"
NO_URLS = "must be a data URL: see allow_image_urls of the profile"
NOT_TAKEN = {
    "images": "the model takes no images",
    "files": "the provider of this model takes no PDF files",
    "image_urls": "must be a data URL: the provider of this model fetches no others",
    "file_urls": "must be a data URL: the provider of this model fetches no others",
}
"""What some providers can't take, and the text for the client."""


def admitted(request: ChatRequest, profile: Profile, takes: Collection[str]) -> tuple[ChatRequest, int]:
    """Return the request with the images and files that may be sent, and the number that was left out.

    The newest `max_images` are kept. `takes` holds the words of NOT_TAKEN that the provider supports. Raises
    ImagesNotSupported and BadRequest for an image or file of the newest message.
    """
    messages = request.messages
    if not any(message.attachments for message in messages):
        return request, 0
    new, room, dropped = first_new(messages), profile.max_images, 0
    found = list(messages)
    for at in range(len(messages) - 1, -1, -1):
        kept: list[Attachment] = []
        for attachment in reversed(messages[at].attachments):
            refused = _rule(attachment, profile, takes, room)
            if refused is None:
                kept.append(attachment)
                room -= 1
            elif at >= new:
                raise refused
            else:
                dropped += 1
        if len(kept) < len(messages[at].attachments):
            found[at] = keeping(messages[at], kept.__contains__)
    return replace(request, messages=tuple(found)), dropped


def _rule(attachment: Attachment, profile: Profile, takes: Collection[str], room: int) -> BadRequest | None:
    """Return the error for this attachment; None if it may be sent."""
    field = attachment.field
    if not profile.allow_images:
        return ImagesNotSupported(NO_IMAGES, field=field)
    if attachment.flaw:
        return BadRequest(attachment.flaw, field=field)
    if lacking := next((need for need in needs(attachment) if need not in takes), None):
        return ImagesNotSupported(NOT_TAKEN[lacking], field=field)
    if attachment.url:
        if not profile.allow_image_urls:
            return BadRequest(NO_URLS, field=field)
    elif attachment.size > profile.max_image_bytes:
        return BadRequest(f"must have at most {profile.max_image_bytes} bytes", field=field)
    if room < 1 or not (attachment.data or attachment.url):
        return BadRequest(f"must not be one of more than {profile.max_images} images and files", field=field)
    return None
