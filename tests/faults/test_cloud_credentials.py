"""Credentials that the clouds' own libraries find: what is signed, what is sent, what happens where there are none.

Requests for Bedrock and Vertex AI reach the scripted provider as a proxy, so that they name the real hosts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from scripted_provider import ScriptedProvider, answer, failure, http

from chat_nest.core.deltas import TextDelta
from chat_nest.core.errors import UpstreamAuth
from chat_nest.core.extras import install
from chat_nest.core.messages import Message
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.credentials import AWSCredentials, GoogleCredentials, credentials_for
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers import PRESETS

ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
"""Those of AWS's test suite."""
BEDROCK = "http://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1"
VERTEX = "http://aiplatform.googleapis.com/v1/projects/p/locations/global/endpoints/openapi"
PROMPT = Prompt(model="m", messages=(Message(role="user", content="Hi"),), max_output_tokens=9)
WHEN = datetime(2015, 8, 30, 12, 36, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No credentials but a test's own, and none in a log."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    caplog.set_level(logging.DEBUG, "chat_nest")
    yield
    assert SECRET not in caplog.text
    assert "canary" not in caplog.text


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider(answer("Hello")) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
        yield server


def keys(monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    if token is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)


def at_the_suites_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: WHEN)


async def ask(client: Any) -> str:
    async with client.open(PROMPT, Timeouts()) as batches:
        return "".join([delta.text async for batch in batches for delta in batch if isinstance(delta, TextDelta)])


# https://github.com/awslabs/aws-c-auth/tree/main/tests/aws-signing-test-suite/v4: post-vanilla, post-sts-header-before
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthA"
    "x7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY"
    "9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)


@pytest.mark.parametrize(
    ("method", "token", "signature"),
    [
        ("GET", None, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", None, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ("POST", TOKEN, "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"),
    ],
)
async def test_the_signature_matches_the_test_vectors_of_aws(
    monkeypatch: pytest.MonkeyPatch, method: str, token: str | None, signature: str
) -> None:
    keys(monkeypatch, token)
    at_the_suites_time(monkeypatch)
    headers = await AWSCredentials("service", "us-east-1").headers(method, "https://example.amazonaws.com/", "", b"")
    signed = "host;x-amz-date" + (";x-amz-security-token" if token else "")
    assert headers == {
        "x-amz-date": "20150830T123600Z",
        **({"x-amz-security-token": token} if token else {}),
        "authorization": f"AWS4-HMAC-SHA256 Credential={ID}/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={signed}, Signature={signature}",
    }


@pytest.mark.parametrize("where", ["environment", "profile"])
async def test_a_request_to_bedrock_is_signed_for_its_region(
    server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    if where == "environment":
        keys(monkeypatch, "a-session")
    else:
        monkeypatch.setenv("AWS_PROFILE", "mine")
        (tmp_path / "credentials").write_text(
            f"[mine]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\naws_session_token = a-session\n"
        )
    client = OpenAIProvider(base_url=BEDROCK, preset=PRESETS["bedrock"], credentials="aws")
    assert await ask(client) == "Hello"
    (request,) = server.requests
    assert request.path == f"{BEDROCK}/chat/completions"
    assert request.headers["x-amz-security-token"] == "a-session"
    said = request.headers["authorization"]
    assert said.startswith(f"AWS4-HMAC-SHA256 Credential={ID}/")
    assert "/eu-west-1/bedrock/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, " in said
    # What the server computes from the bytes that came is what the client has signed.
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import ReadOnlyCredentials

    sent = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: sent)
    again = AWSRequest("POST", request.path, {"content-type": request.headers["content-type"]}, request.body)
    SigV4Auth(ReadOnlyCredentials(ID, SECRET, "a-session"), "bedrock", "eu-west-1").add_auth(again)
    assert request.headers["host"] == "bedrock-runtime.eu-west-1.amazonaws.com"
    assert again.headers["authorization"] == said
    await client.aclose()


async def test_each_attempt_is_signed_anew(server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    keys(monkeypatch)
    client = AnthropicProvider(base_url="http://bedrock-mantle.us-east-1.api.aws/anthropic", credentials="aws")
    for text in ("a", "b"):
        with pytest.raises(Exception, match="answer"):  # it is not Anthropic's format
            async with client.open(
                Prompt(model=text, messages=PROMPT.messages, max_output_tokens=9), Timeouts()
            ) as all:
                _ = [batch async for batch in all]
    first, second = (request.headers["authorization"] for request in server.requests)
    assert "/us-east-1/bedrock-mantle/aws4_request" in first
    assert first != second
    assert "x-api-key" not in server.requests[0].headers
    await client.aclose()


async def test_credentials_that_expire_are_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A profile's `credential_process`, as for any temporary credentials."""
    count = tmp_path / "count"
    program = tmp_path / "process"
    program.write_text(
        f"#!/bin/sh\necho x >> {count}\nwhen=$(date -u -d '+1 minute' +%Y-%m-%dT%H:%M:%SZ)\n"
        f'echo \'{{"Version":1,"AccessKeyId":"{ID}","SecretAccessKey":"{SECRET}","SessionToken":"t","Expiration":"\'$when\'"}}\'\n'
    )
    program.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    signer = AWSCredentials("bedrock", "eu-west-1")
    for _ in range(3):
        assert "authorization" in await signer.headers("POST", BEDROCK, "", b"")
    assert len(count.read_text().split()) >= 3, "they last for a minute, and are renewed a quarter of an hour before"


async def test_without_credentials_nothing_is_sent(
    server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked = 0

    def look(self: object) -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr("botocore.session.Session.get_credentials", look)
    client = OpenAIProvider(base_url=BEDROCK, preset=PRESETS["bedrock"], credentials="aws")
    failures = await asyncio.gather(*(ask(client) for _ in range(20)), client.check(), return_exceptions=True)
    for failed in failures:
        assert isinstance(failed, UpstreamAuth)
        assert failed.spent_nothing
    assert not server.requests + server.checks
    assert looked == 1, "who comes together waits for one search, and a failure counts for a while"
    assert caplog.text.count("no credentials for the provider: none were found") == 1
    await client.aclose()


def service_account(tmp_path: Path, url: str) -> Path:
    """The file of a Google service account whose tokens come from `url`."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    file = tmp_path / "account.json"
    named = {"type": "service_account", "client_email": "a@p.example", "private_key": pem, "token_uri": url}
    file.write_text(json.dumps(named))
    return file


def token(name: str, seconds: int = 3_600) -> bytes:
    return http(200, json.dumps({"access_token": name, "expires_in": seconds, "token_type": "Bearer"}).encode())


async def test_google_s_token_is_fetched_once_and_renewed_before_it_expires(
    server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with ScriptedProvider(token("canary-a", 100), token("canary-b")) as google:
        account = service_account(tmp_path, f"http://127.0.0.1:{google.port}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        client = OpenAIProvider(base_url=VERTEX, preset=PRESETS["vertex"], credentials="google")
        for _ in range(3):
            assert await ask(client) == "Hello"
        sent = [request.headers["authorization"] for request in server.requests]
        assert sent == ["Bearer canary-a", "Bearer canary-b", "Bearer canary-b"]
        assert len(google.requests) == 2
        await client.aclose()


async def test_a_token_is_used_for_as_long_as_it_lasts(
    server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has 100 s left, too few for google-auth, and no other one can be had."""
    async with ScriptedProvider(token("canary-a", 100), failure(400)) as google:
        monkeypatch.setenv(
            "GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, f"http://127.0.0.1:{google.port}/token"))
        )
        client = OpenAIProvider(base_url=VERTEX, preset=PRESETS["vertex"], credentials="google")
        for _ in range(2):
            assert await ask(client) == "Hello"
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer canary-a"}
        await client.aclose()


async def test_a_refused_account_of_google_s_is_no_secret_in_a_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedProvider(failure(400, "canary")) as google:
        monkeypatch.setenv(
            "GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, f"http://127.0.0.1:{google.port}/token"))
        )
        with pytest.raises(UpstreamAuth):
            await GoogleCredentials().headers("POST", VERTEX, "", b"")
    assert "no credentials for the provider: RefreshError" in caplog.text


@pytest.mark.parametrize(
    ("cloud", "url", "problem"),
    [
        ("aws", "https://example.com/v1", "credentials need a base_url of Bedrock"),
        ("google", "https://googleapis.com.example.com", "credentials need a base_url of googleapis.com"),
        ("google", "https://evilgoogleapis.com", "credentials need a base_url of googleapis.com"),
        ("azure", "https://example.com", "credentials must be aws or google"),
    ],
)
def test_a_token_is_never_sent_elsewhere(cloud: str, url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}"):
        credentials_for(cloud, url)


@pytest.mark.parametrize(
    ("host", "service", "region"),
    [
        ("bedrock-runtime.us-east-1.amazonaws.com", "bedrock", "us-east-1"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "bedrock", "us-gov-west-1"),
        ("bedrock-mantle.eu-central-1.api.aws", "bedrock-mantle", "eu-central-1"),
        ("vpce-0a1b-2c3d.bedrock-runtime.us-west-2.vpce.amazonaws.com", "bedrock", "us-west-2"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "bedrock", "cn-north-1"),
    ],
)
def test_service_and_region_are_the_hosts(host: str, service: str, region: str) -> None:
    made = credentials_for("aws", f"https://{host}/openai/v1")
    assert isinstance(made, AWSCredentials)
    assert (made._service, made._region) == (service, region)


def test_keys_and_credentials_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="^give either credentials or keys, not both$"):
        OpenAIProvider("k", BEDROCK, credentials="aws")


@pytest.mark.parametrize(("cloud", "package", "url"), [("aws", "botocore", BEDROCK), ("google", "google", VERTEX)])
def test_a_library_that_is_missing_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, cloud: str, package: str, url: str
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("chat_nest.providers.credentials.import_module", missing)
    with pytest.raises(ValueError, match="need a package that is not installed: run: ") as caught:
        credentials_for(cloud, url)
    assert str(caught.value).endswith(install(cloud))
