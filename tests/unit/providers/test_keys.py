"""Which of several keys a request takes, and how long a refused one rests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from chat_nest.core.errors import (
    UpstreamAuth,
    UpstreamError,
    UpstreamForbidden,
    UpstreamModelNotFound,
    UpstreamOverloaded,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from chat_nest.providers.keys import EVERY_MODEL, Key, KeyPool, parse_keys

NAMES = ("canary-a", "canary-b", "canary-c")


def pool(count: int = 3) -> KeyPool:
    return KeyPool(NAMES[:count], name="host")


def chosen(keys: KeyPool, now: float = 0.0, model: str = "m") -> Key:
    key = keys.choose(model, now)
    assert key is not None
    keys.chosen(key)
    return key


def fail(keys: KeyPool, key: Key, error: UpstreamError, now: float = 0.0, model: str = "m") -> UpstreamError:
    keys.failed(key, model, error, now)
    return error


def rest_of(error: UpstreamError, model: str = "m") -> tuple[float, bool]:
    """How long a key rests after this error, and whether it does so for other models, too."""
    keys = pool()
    key = chosen(keys)
    fail(keys, key, error, 0.0, model)
    rest = key.rest(model, 0.0)
    return (0.0 if rest is None else rest.until, key.rest("another", 0.0) is not None)


def test_the_key_with_the_fewest_answers_is_next_and_then_the_one_that_waited_longest() -> None:
    keys = pool()
    first, second, third = (chosen(keys) for _ in range(3))
    assert [first.value, second.value, third.value] == list(NAMES)
    keys.left(second)
    assert chosen(keys) is second
    for key in (third, second, first):
        keys.left(key)
    assert [chosen(keys) for _ in range(3)] == [first, third, second]


@pytest.mark.parametrize(
    ("error", "seconds", "every_model"),
    [
        (UpstreamAuth(), 600, True),
        (UpstreamQuota(), 300, True),
        (UpstreamForbidden(), 60, False),
        (UpstreamModelNotFound(), 60, False),
        (UpstreamRateLimited(), 5, False),
        (UpstreamOverloaded(), 0, False),
        (UpstreamUnavailable(), 0, False),
        (UpstreamRejected(), 0, False),
        (UpstreamError(), 0, False),
    ],
)
def test_how_long_a_key_rests_and_for_which_models(error: UpstreamError, seconds: float, every_model: bool) -> None:
    assert rest_of(error) == (seconds, every_model)
    assert error.of_key is bool(seconds)


@pytest.mark.parametrize(("said", "rests"), [(0.0, 5), (30.0, 30), (3_600.0, 3_600)])
def test_a_key_rests_as_long_as_the_provider_demands(said: float, rests: float) -> None:
    error = UpstreamRateLimited()
    error.resets_after = said
    assert rest_of(error) == (rests, False)


def test_a_key_that_is_refused_again_and_again_rests_longer() -> None:
    keys, now, rests = pool(), 0.0, list[float]()
    key = chosen(keys)
    for _ in range(40):
        fail(keys, key, UpstreamRateLimited(), now)
        rest = key.rest("m", now)
        assert rest is not None
        rests.append(rest.until - now)
        now = rest.until
    assert rests[:5] == [5, 10, 20, 40, 60]
    assert set(rests[5:]) == {60}
    keys.accepted(key, "m", now)
    fail(keys, key, UpstreamRateLimited(), now)
    assert key.rest("m", now + 4.9)
    assert not key.rest("m", now + 5)


def test_refusals_of_requests_that_were_under_way_together_are_one(caplog: pytest.LogCaptureFixture) -> None:
    keys = pool()
    key = chosen(keys)
    for tenth in range(40):
        fail(keys, key, UpstreamRateLimited(), tenth / 10)
    assert key.rest("m", 8.8)
    assert not key.rest("m", 8.9), "five seconds after the last of them"
    assert caplog.text.count("rests for") == 1


def test_an_answer_to_an_earlier_request_does_not_wake_a_key() -> None:
    keys = pool()
    key = chosen(keys)
    fail(keys, key, UpstreamAuth(), 10.0)
    keys.accepted(key, "m", 9.0)
    assert key.rest("m", 11.0)
    keys.accepted(key, "m", 10.5)
    assert not key.rest("m", 11.0)


def test_a_resting_key_is_left_alone_for_this_model_only() -> None:
    keys = pool(2)
    key = chosen(keys)
    fail(keys, key, UpstreamRateLimited(), 0.0)
    keys.left(key)
    assert [chosen(keys, 1.0).value for _ in range(2)] == ["canary-b", "canary-b"]
    assert chosen(keys, 1.0, "another") is key
    assert keys.choose("m", 5.0) is key, "it has fewer running answers"


def test_the_error_of_keys_that_all_rest_is_that_of_the_first_to_wake() -> None:
    keys = pool()
    first, second, third = (chosen(keys) for _ in range(3))
    fail(keys, first, UpstreamAuth(), 0.0)
    fail(keys, second, UpstreamQuota(), 0.0)
    fail(keys, third, UpstreamRateLimited(), 0.0)
    assert keys.choose("m", 2.0) is None
    error = keys.exhausted("m", 2.0)
    assert (type(error), error.retry_after, error.spent_nothing, error.of_key) == (UpstreamRateLimited, 3.0, True, True)
    fail(keys, third, UpstreamQuota(), 2.0)
    keys.accepted(third, "m", 2.0)
    fail(keys, third, UpstreamAuth(), 2.0)
    error = keys.exhausted("m", 2.0)
    assert (type(error), error.retry_after) == (UpstreamQuota, None), "it is not worth to wait for"
    assert keys.first_awake(2.0) is second


def test_retry_after_is_never_an_hour_for_a_client() -> None:
    keys = pool(2)
    for _ in range(2):
        error = UpstreamRateLimited()
        error.resets_after = 3_600.0
        fail(keys, chosen(keys), error)
    assert keys.exhausted("m", 0.0).retry_after == 60.0


def test_the_only_key_never_rests() -> None:
    keys = pool(1)
    for error in (UpstreamAuth(), UpstreamQuota(), UpstreamRateLimited()):
        assert not fail(keys, chosen(keys), error).of_key
        assert keys.choose("m", 0.0)


def test_neither_models_nor_refusals_grow_without_bound() -> None:
    keys = pool()
    key = chosen(keys)
    for number in range(10_000):
        fail(keys, key, UpstreamRateLimited(), 100.0 * number, f"m{number}")
    assert len(key.rests) <= 64


def test_the_log_shows_a_fingerprint_of_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = pool()
    key = chosen(keys)
    error = UpstreamAuth()
    error.detail = "HTTP 401, invalid_api_key"
    fail(keys, key, error)
    fail(keys, key, UpstreamRateLimited(), 0.0, "gpt-x")
    assert [record.getMessage() for record in caplog.records] == [
        "host: key 9c527750 rests for 600 s, for every model: upstream_auth (HTTP 401, invalid_api_key)",
        "host: key 9c527750 rests for 5 s, for gpt-x: upstream_rate_limited",
    ]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "canary" not in caplog.text + repr(key) + repr(keys)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (b"one", ("one",)),
        (b"one\n", ("one",)),
        (b"\xef\xbb\xbf# ours\r\none # of team a\r\n\r\n  two\t# of team b\r\n#three\r\n", ("one", "two")),
        (b"one\none\ntwo", ("one", "two")),
        (b"a#b==", ("a#b==",)),
    ],
)
def test_a_file_of_keys(text: bytes, keys: tuple[str, ...]) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "the file must hold a key"),
        (b"# none\n\n", "the file must hold a key"),
        (b"one\ncanary two\n", "line 2: must be one key, and nothing behind it but a # with a comment"),
        ("schlüssel-canary".encode(), "the file must hold keys of printable ASCII characters without blanks"),
        (b"canary\x00", "the file must hold keys of printable ASCII characters without blanks"),
        (b"\xff\xfecanary", "must be UTF-8 text with one key a line"),
        (b"\n".join(b"%d" % number for number in range(1_001)), "the file must hold at most 1000 keys"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused_without_being_quoted(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        parse_keys(text)
    assert str(caught.value) == problem


def test_keys_that_can_not_be_sent_are_refused() -> None:
    for keys in ([""], ["a b"], ["é"], ["a\n"], []):
        if keys != ["a\n"]:  # blanks around a key are a habit of copying
            with pytest.raises(ValueError, match="^api_keys must hold "):
                KeyPool(keys)
    assert KeyPool(["a\n"]).secrets == ["a"]


async def test_keys_that_stay_in_the_file_keep_their_rests(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("canary-a\ncanary-b\n")
    keys = KeyPool(file=file)
    key = chosen(keys)
    fail(keys, key, UpstreamAuth(), 0.0)
    keys._take(("canary-b", "canary-a", "canary-c"))
    assert key.rest(EVERY_MODEL, 1.0)
    assert {chosen(keys, 1.0).value for _ in range(4)} == {"canary-b", "canary-c"}
    keys._take(("canary-b",))
    keys.left(key)  # an answer that goes on with a key that was removed
    assert len(keys) == 1
