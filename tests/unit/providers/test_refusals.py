from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from email.utils import formatdate

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_nest.core.errors import (
    ContextLengthExceeded,
    UpstreamAuth,
    UpstreamError,
    UpstreamForbidden,
    UpstreamModelNotFound,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from chat_nest.providers.refusals import event_failure, refusal, retry_after


@pytest.fixture(autouse=True)
def local_time() -> Iterator[None]:
    yield
    time.tzset()


NOW = 1_762_000_000.0


@pytest.mark.parametrize(
    ("statuses", "expected", "retryable"),
    [
        ([401], UpstreamAuth, False),
        ([403], UpstreamForbidden, False),
        ([429], UpstreamRateLimited, True),
        ([402], UpstreamQuota, False),
        ([400, 404, 405, 410, 413, 415, 418, 422, 451], UpstreamRejected, False),
        ([500, 502, 503], UpstreamUnavailable, True),
        ([529], UpstreamOverloaded, True),
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


UNKNOWN_MODEL = {
    # https://platform.openai.com/docs/guides/error-codes; the body as in github.com/Aider-AI/aider/issues/2030.
    "openai": (
        404,
        b'{"error":{"message":"The model `m` does not exist or you do not have access to it.",'
        b'"type":"invalid_request_error","param":null,"code":"model_not_found"}}',
        "HTTP 404, model_not_found, invalid_request_error",
    ),
    # https://docs.anthropic.com/en/api/errors; the body as in github.com/anthropics/claude-code/issues/5349.
    "anthropic": (
        404,
        b'{"type":"error","error":{"type":"not_found_error","message":"model: m"}}',
        "HTTP 404, not_found_error",
    ),
    # https://ai.google.dev/gemini-api/docs/troubleshooting; the body as in github.com/google/adk-python/issues/200.
    "gemini": (
        404,
        b'{"error":{"code":404,"message":"models/m is not found for API version v1beta, or is not supported for '
        b'generateContent.","status":"NOT_FOUND"}}',
        "HTTP 404, 404, NOT_FOUND",
    ),
    # https://docs.ollama.com/api/errors; the body as in github.com/TheBlewish/Automated-AI-Web-Researcher-Ollama/issues/42.
    "ollama": (404, b'{"error":"model \'m\' not found"}', "HTTP 404"),
    # github.com/netease-youdao/QAnything/issues/555
    "ollama_v1": (
        404,
        b'{"error":{"message":"model \\"m\\" not found, try pulling it first","type":"api_error","param":null,"code":null}}',
        "HTTP 404, api_error",
    ),
    # github.com/vllm-project/vllm/issues/3485
    "vllm": (
        404,
        b'{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}',
        "HTTP 404, 404, NotFoundError",
    ),
    # github.com/tmc/langchaingo/issues/1233
    "mistral": (
        400,
        b'{"object":"error","message":"Invalid model: m","type":"invalid_model","param":null,"code":"1500"}',
        "HTTP 400, 1500, invalid_model",
    ),
    # github.com/OpenRouterTeam/openrouter-examples/issues/74
    "openrouter": (400, b'{"error":{"message":"m is not a valid model ID","code":400}}', "HTTP 400, 400"),
    # https://learn.microsoft.com/azure/ai-foundry/openai/reference
    "azure": (
        404,
        b'{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}',
        "HTTP 404, DeploymentNotFound",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN_MODEL)
def test_an_unknown_model_has_a_specific_code(kind: str) -> None:
    status, body, detail = UNKNOWN_MODEL[kind]
    error = refusal(status, {}, body, NOW)
    assert (type(error), error.status, error.detail) == (UpstreamModelNotFound, 502, detail)
    assert (error.retryable, error.spent_nothing) == (False, True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"Invalid URL (POST /v1/v1/chat/completions)","type":"invalid_request_error"}}',
        b'{"type":"error","error":{"type":"not_found_error","message":"Not Found"}}',
        b"<html>404 model</html>",
        b"404 page not found",
        b'{"error":5}',
        b'{"error":{"code":["model_not_found"],"message":["model"]}}',
    ],
)
def test_a_404_of_a_wrong_url_is_none(body: bytes) -> None:
    assert type(refusal(404, {}, body, NOW)) is UpstreamRejected


def test_a_400_that_mentions_a_model_is_none() -> None:
    body = b'{"error":{"message":"This model takes no temperature","code":"unsupported_value"}}'
    error = refusal(400, {}, body, NOW)
    assert (type(error), error.detail) == (UpstreamRejected, "HTTP 400, unsupported_value")


@pytest.mark.parametrize(
    "word",
    [
        "sk-proj-4f1d",
        "a prompt of words",
        "",
        "x" * 65,
        "new\nline",
        "\x1b[31m",
        ["list"],
        {"a": 1},
        123456,
        None,
        True,
    ],
)
def test_only_identifiers_are_kept_for_the_log(word: object) -> None:
    body = json.dumps({"error": {"code": word, "type": "invalid_request_error", "message": "canary"}}).encode()
    error = refusal(400, {}, body, NOW)
    assert error.detail == "HTTP 400, invalid_request_error"


def test_a_part_of_a_secret_is_not_kept_for_the_log() -> None:
    body = b'{"error":{"code":"openssesame","type":"other"}}'
    assert refusal(400, {}, body, NOW, ["Bearer openssesame"]).detail == "HTTP 400, other"


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
    assert (type(error), error.code, error.status) == (UpstreamQuota, "upstream_quota", 503)
    assert (error.retryable, error.retry_after, error.spent_nothing) == (False, None, True)


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
def test_any_retry_after_is_bounded(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= 60


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "999999"}, 3_600),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1", "retry-after-ms": "120.5"}, 0.1205),
        # https://platform.openai.com/docs/guides/rate-limits
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7.66s"}, 7.66),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "23h59m"}, 3_600),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": ""}, None),
        ({"x-ratelimit-remaining-tokens": "0"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            2,
        ),
        # https://docs.anthropic.com/en/api/rate-limits
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": datetime.fromtimestamp(NOW + 30, UTC).isoformat(),
            },
            30,
        ),
        # https://openrouter.ai/docs/api-reference/limits
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int((NOW + 40) * 1_000))}, 40),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW + 40))}, 40),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "nan"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "inf"}, 3_600),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9999-99-99"}, None),
    ],
)
def test_when_a_limit_resets(headers: dict[str, str], seconds: float | None) -> None:
    said = refusal(429, headers, b"{}", NOW).resets_after
    assert said == (seconds if seconds is None else pytest.approx(seconds))


def test_the_reset_of_a_limit_in_the_format_of_google() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "95.5s"}]
    error = refusal(429, {}, json.dumps({"error": {"details": details}}).encode(), NOW)
    assert (error.resets_after, error.retry_after) == (95.5, 60)


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        # https://github.com/earendil-works/pi/issues/5677 and 4943, https://github.com/jin-bo/agentao/pull/88
        ("Input length (265330) exceeds model's maximum context length (262144).", (265330, 262144)),
        ("Input length 131393 exceeds the maximum allowed input length of 131040 tokens.", (131393, 131040)),
        # Anthropic's other text, with max_tokens
        ("input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length", (200000, 188240)),
        # https://github.com/zhy0216/pigo has those of xAI, Kimi, MiniMax, Copilot and LM Studio
        ("This model's maximum prompt length is 131072 but the request contains 537812 tokens.", (537812, 131072)),
        ("Your request exceeded model token limit: 131072 (requested: 140000)", (140000, 131072)),
        ("invalid params, context window exceeds limit (2013)", None),
        ("prompt token count of 130000 exceeds the limit of 128000", (130000, 128000)),
        ("The number of tokens to keep from the initial prompt is greater than the context length.", None),
        ("Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens", (5000, 4096)),
        # https://github.com/ValueCell-ai/ClawX/issues/658: oMLX
        ("Prompt too long: 41911 tokens exceeds max context window of 32768 tokens", (41911, 32768)),
        ("prompt too long; exceeded max context length by 123 tokens", None),
        ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", (5000, 4096)),
        ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100 `max_new_tokens`", (5000, 4096)),
        ("Input Tokens Exceeded: Number of input tokens exceeds maximum length.", None),
        ("The estimated number of input and maximum output tokens (10000) exceeded this model context window limit (8192).", (10000, 8192)),
        ("Range of input length should be [1, 98304]", None),
        ("Prompt exceeds max length", None),
        ("too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.", (5000, 4081)),
    ],
)  # fmt: skip
def test_a_prompt_that_is_too_long_in_the_words_of_many(said: str, counts: tuple[int, int] | None) -> None:
    for error in (
        refusal(400, {}, json.dumps({"error": {"message": said}}).encode(), NOW),
        event_failure({"message": said}),
    ):
        assert type(error) is ContextLengthExceeded
        if counts is not None:
            assert (error.tokens, error.limit) == counts


@pytest.mark.parametrize("code", ["model_max_prompt_tokens_exceeded", "tokens_limit_reached", "1261"])
def test_a_prompt_that_is_too_long_by_code(code: str) -> None:
    body = json.dumps({"error": {"code": code, "message": "x"}}).encode()
    assert type(refusal(413, {}, body, NOW)) is ContextLengthExceeded


@pytest.mark.parametrize(
    "said",
    [
        "Too many tokens, please wait before trying again.",  # Bedrock's throttle
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "The maximum tokens you requested exceeds the model limit of 10000.",
        "Token rate limit exceeded",
        "temperature exceeds the maximum",
    ],
)
def test_other_limits_are_no_prompt_that_is_too_long(said: str) -> None:
    assert type(refusal(400, {}, json.dumps({"error": {"message": said}}).encode(), NOW)) is UpstreamRejected


@pytest.mark.parametrize(
    "body",
    [
        # https://github.com/langbot-app/LangBot/issues/1643
        {"error": {"message": "Model Not Exist", "type": "invalid_request_error", "param": None, "code": "invalid_request_error"}},
        # https://github.com/ErlichLiu/DeepClaude/issues/111
        {"code": 20012, "message": "Model does not exist. Please check it carefully.", "data": None},
        {"error": {"code": "1211", "message": "Unknown Model, please check the model code."}},
        {"error": {"message": "/chat/completions: Invalid model name passed in model=m", "type": "None", "code": "400"}},
        {"message": "The provided model identifier is invalid."},
    ],
)  # fmt: skip
def test_an_unknown_model_with_status_400(body: object) -> None:
    assert type(refusal(400, {}, json.dumps(body).encode(), NOW)) is UpstreamModelNotFound
