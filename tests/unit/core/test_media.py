from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import gif, jpeg, pdf, png, webp

from chat_nest.core.media import Media, decoded_size, is_base64, look, pages


def seen(data: bytes) -> tuple[str, int, int]:
    found = look(b64encode(data))
    return found.type, found.width, found.height


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (png(300, 200), "image/png"),
        (gif(300, 200), "image/gif"),
        (jpeg(300, 200), "image/jpeg"),
        (jpeg(300, 200, profile=900_000), "image/jpeg"),
        *((webp(300, 200, kind), "image/webp") for kind in (b"VP8 ", b"VP8L", b"VP8X")),
    ],
)
def test_the_size_is_read_from_the_header_whatever_precedes_it(data: bytes, kind: str) -> None:
    assert seen(data) == (kind, 300, 200)


@pytest.mark.parametrize("data", [b"", b"GIF", b"<svg xmlns=", b"MZ\x90", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", b"BM6"])
def test_other_bytes_have_no_type(data: bytes) -> None:
    assert look(b64encode(data)) == Media()


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF1234WEBPVP8 ", b"GIF89a", b"\x89PNG\r\n\x1a\n"]),
)
def test_no_file_breaks_it(data: bytes, start: bytes) -> None:
    found = look(b64encode(start + data))
    assert found.width >= 0
    assert found.height >= 0


@given(st.binary(max_size=99), st.booleans())
def test_the_length_of_base64_is_known_without_decoding_it(data: bytes, padded: bool) -> None:
    text = b64encode(data) if padded else b64encode(data).rstrip(b"=")
    assert is_base64(text)
    assert decoded_size(text) == len(data)


@pytest.mark.parametrize("text", [b"AAAA=AAA", b"A", b"AAAA===", b"AA-_", b"AA AA", b"AAAAA"])
def test_invalid_base64_is_refused(text: bytes) -> None:
    assert not is_base64(text)


@pytest.mark.parametrize("count", [1, 7, 99])
def test_the_pages_of_a_pdf_are_counted_over_slices(count: int) -> None:
    data = pdf(count, between=b" " * 9_973)
    assert look(b64encode(data)).type == "application/pdf"
    assert max(pages(b64encode(data))) == count


def test_pages_that_are_compressed_are_bounded_by_the_files_size() -> None:
    data = pdf(0).replace(b"trailer", b"9 0 obj << /Type /ObjStm /N 50 >> endobj trailer")
    assert max(pages(b64encode(data + b" " * 20_000))) == 21
    assert max(pages(b64encode(data + b" " * 900_000))) == 100
