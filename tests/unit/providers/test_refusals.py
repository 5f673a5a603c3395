from __future__ import annotations

import json
import time
from email.utils import formatdate

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamProtocol,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from chat_nest.providers.refusals import refusal, retry_after


@pytest.fixture(autouse=True)
def local_time() -> Iterator[None]:
    yield
    time.tzset()


NOW = 1_762_000_000.0


@pytest.mark.parametrize(
    ("statuses", "expected", "retryable"),
    [
        ([401, 403], UpstreamAuth, False),
        ([429], UpstreamRateLimited, True),
        ([400, 402, 404, 405, 410, 413, 415, 418, 422, 451], UpstreamRejected, False),
        ([500, 502, 503, 529], UpstreamUnavailable, True),
        ([409, 501, 505, 511, 530, 599], UpstreamUnavailable, False),
        ([100, 101, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308], UpstreamProtocol, False),
    ],
)
def test_statuses(statuses: list[int], expected: type[UpstreamError], retryable: bool) -> None:
    for status in statuses:
        error = refusal(status, {}, b'{"error":{"message":"canary-2f7c","code":"canary-2f7c"}}', NOW)
        assert type(error) is expected
        assert (error.retryable, error.spent_nothing, error.retry_after) == (retryable, True, None)
        assert "canary" not in repr(error)


@pytest.mark.parametrize("status", [408, 504, 520, 522, 524, 527])
def test_a_time_out_behind_a_gateway_may_have_been_billed(status: int) -> None:
    error = refusal(status, {}, b"", NOW)
    assert type(error) is UpstreamUnavailable
    assert (error.retryable, error.spent_nothing) == (status == 504, False)


def google(status: str, *details: object) -> bytes:
    return json.dumps({"error": {"code": 1, "message": "canary-2f7c", "status": status, "details": details}}).encode()


def test_googles_refused_key_is_one_although_its_status_is_400() -> None:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
    }
    assert type(refusal(400, {}, google("INVALID_ARGUMENT", info), NOW)) is UpstreamAuth
    assert (
        type(refusal(400, {}, google("INVALID_ARGUMENT", {"reason": ["API_KEY_INVALID"]}, 3), NOW)) is UpstreamRejected
    )
    assert type(refusal(400, {}, b'{"error":{"details":"API_KEY_INVALID"}}', NOW)) is UpstreamRejected


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("34.07s", 34.07), ("0s", 0), ("999999s", 60), ("-3s", 0), ("nans", None), ("soon", None), (7, None)],
)
def test_googles_time_to_wait_is_in_the_body(delay: object, seconds: float | None) -> None:
    body = google("RESOURCE_EXHAUSTED", {"quotaId": "x"}, {"@type": "x/google.rpc.RetryInfo", "retryDelay": delay})
    error = refusal(429, {}, body, NOW)
    assert (type(error), error.retry_after, error.retryable) == (UpstreamRateLimited, seconds, True)
    assert refusal(429, {"Retry-After": "7"}, body, NOW).retry_after == 7


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_a_time_to_wait_is_passed_on(status: int) -> None:
    assert refusal(status, {"Retry-After": "7"}, b"", NOW).retry_after == 7


@pytest.mark.parametrize("field", ["code", "type"])
def test_an_account_without_credit_is_not_worth_a_retry(field: str) -> None:
    body = b'{"error":{"message":"x","%b":"insufficient_quota","param":null}}' % field.encode()
    error = refusal(429, {"Retry-After": "7"}, body, NOW)
    assert (type(error), error.code, error.status) == (UpstreamRateLimited, "upstream_rate_limited", 503)
    assert (error.retryable, error.retry_after, error.spent_nothing) == (False, None, True)
    assert UpstreamRateLimited().retryable, "only this one error changed, not its class"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"insufficient_quota",
        b'"insufficient_quota"',
        b'{"error":"insufficient_quota"}',
        b'{"error":null}',
        b'{"error":{"message":"insufficient_quota"}}',
        b'{"error":{"code":["insufficient_quota"]}}',
        b'{"error":{"code":429}}',
        b'{"error":{"code":"insufficient_quota"',
        b"\xff",
        b'{"x":' * 10_000,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_any_other_429_is(body: bytes) -> None:
    assert refusal(429, {}, body, NOW).retryable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("60", 60),
        ("61", 60),
        ("1e300", 60),
        ("9" * 5_000, 60),
        ("inf", 60),
        ("-inf", 0),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("7 seconds", None),
        (formatdate(NOW + 7, usegmt=True), 7),
        (formatdate(NOW - 7, usegmt=True), 0),
        (formatdate(NOW + 86_400, usegmt=True), 60),
        ("Sat, 01 Nov 2025 12:26:47", 7),
        ("Sat Nov  1 12:26:47 2025", 7),
        ("Fri, 31 Dec 9999 23:59:59 -2300", 60),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Fri, 99 Nov 2025 12:26:47 GMT", None),
        (f"Fri, 31 Oct {'9' * 30} 12:26:47 GMT", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_retry_after(value: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")  # a date without a zone is UTC wherever this runs
    time.tzset()
    assert retry_after(value, NOW) == seconds


@given(
    st.text()
    | st.text("0123456789:, +-eJanFriGMT", max_size=40)
    | st.datetimes().map(lambda when: f"{when:%a, %d %b %Y %H:%M:%S} GMT")
)
def test_retry_after_is_bounded_whatever_it_says(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= 60
