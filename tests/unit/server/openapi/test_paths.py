"""The OpenAPI document: valid, complete, true to what the dialects say, and without a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from dialect_tools import whatwg

from chat_nest import create_chat_handler
from chat_nest.asgi.handler import USAGE_PATHS
from chat_nest.asgi.request import idempotency_key
from chat_nest.asgi.kept_routes import KEPT_METHODS
from chat_nest.asgi.run_routes import METHODS
from chat_nest.dialects import DIALECTS
from chat_nest.dialects.native import Native
from chat_nest.dialects.openai import OpenAI
from chat_nest.core.errors import (
    KINDS,
    BadRequest,
    ChatError,
    ClientGone,
    Forgotten,
    LimitExceeded,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    RequestTooLarge,
    SlowReader,
    StoreEmptied,
    Unauthorized,
)
from chat_nest.core.protocols import Dialect
from chat_nest.server.app import ServerApp, build
from chat_nest.server.config.settings import load
from chat_nest.server.config.front_ends import PATHS, make_dialects
from chat_nest.server.openapi.sessions import CHECKED
from chat_nest.server.openapi.paths import CALLER, CHAT, PATH, RUN, SOLUTION, VISITOR, add_chat
from chat_nest.server.openapi.paths import document
from chat_nest.server.openapi.parts import CONNECTION
from chat_nest.server.page_files import packaged

METHOD_NAMES = {"get", "post", "put", "patch", "delete"}
NEVER_TOLD = {ChatError, LimitExceeded, SlowReader, ClientGone, Forgotten, MethodNotAllowed, StoreEmptied}
"""A bug; what is always one of its own kinds; what nobody is there to hear; and what no operation is answered with;
and a LimiterUnavailable that only the operator is told apart."""


def made(paths: dict[str, str] | None = None, **options: Any) -> tuple[dict[str, Dialect], dict[str, Any]]:
    """Dialects by name, and the document of them."""
    paths = PATHS if paths is None else paths  # type: ignore[assignment]
    dialects = dict(zip(paths, make_dialects(paths, blog_get=True), strict=True))  # type: ignore[arg-type]
    return dialects, json.loads(document(dialects, **{"max_body_bytes": 1_000, "names_callers": True, **options}))


def built(tmp_path, text: str = "[dialects]\nblog = true\nblog_get = true\n") -> ServerApp:
    file = tmp_path / "chat.toml"
    file.write_text(f'{text}\n[store]\nurl = "memory://"\n')
    environ = {"OPENAI_BASE_URL": "http://provider.secret.test/v1", "OPENAI_API_KEY": "sk-very-secret"}
    return build(load(str(file), environ))


def body_of(app: ServerApp) -> bytes:
    return app._answers[PATH].__self__.body  # type: ignore[attr-defined]


def schema_of(described: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": described["components"]})


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


@pytest.mark.parametrize("names", [[*PATHS], ["ag_ui"], ["openai", "blog"]])
def test_the_document_is_valid_openapi_with_all_options(names):
    _, described = made({name: PATHS[name] for name in names})
    assert described["openapi"] == "3.1.1"
    schemathesis.openapi.from_dict(described).validate()
    for _, method, operation in operations(described):
        assert method in METHOD_NAMES
        for parameter in operation.get("parameters", ()):
            jsonschema_rs.meta.validate(parameter["schema"])
    for schema in described["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_path_that_is_answered_is_in_it(tmp_path):
    app = built(tmp_path)
    described = json.loads(body_of(app))["paths"]
    own = set(app._answers) - {f"/{name}" for name in packaged()} - {"/"}
    routed = {(path, method) for path, found in app._handler._routes._found.items() for method in found.methods}
    assert own | set(USAGE_PATHS) <= set(described)
    for path, method in routed:
        assert method.lower() in described[path], (method, path)
        if method == "POST" and not path.endswith("tokens"):
            assert {f"{path}/{{run}}/{word}" for word in METHODS} <= set(described)
    below = {path for path in described if "{" in path}
    assert set(described) == own | set(USAGE_PATHS) | {path for path, _ in routed} | below
    for path in below:
        assert path.endswith(("/{model}", "/{run}", *(f"/{{run}}/{word}" for word in KEPT_METHODS)))


def test_paths_are_the_configured_ones():
    described = made({"native": "/Talk/", "openai": "/a{b}?"})[1]["paths"]
    assert "/Talk" in described
    assert "/Talk/{run}/stop" in described
    assert "/a%7Bb%7D%3F/models/{model}" in described
    assert not [path for path in described if path.startswith(("/v1", "/api/chat", "/api/ai"))]


def test_every_kind_of_error_is_in_the_document_or_can_not_be_sent():
    told = {*CALLER, *CHECKED, *CHAT, *RUN, *VISITOR, *SOLUTION}
    connections = {text.partition("`:")[0] for text in (each.text for each in CONNECTION)}
    missing = {kind for kind in set(KINDS) - told - NEVER_TOLD if f"`{kind.code}" not in connections}
    assert not missing


def errors_of(kind: type[ChatError]) -> list[ChatError]:
    """With and without all that an error may have."""
    if issubclass(kind, BadRequest):
        return [kind(), kind("must be a string", field="messages[0].content")]
    full = kind() if kind in (NotFound, Unauthorized) else kind(retry_after=3.5)
    if isinstance(full, RateLimited | RequestTooLarge):
        full.limit, full.scope = "tokens_per_day", "group"
    return [kind(), full]


@pytest.mark.parametrize("name", DIALECTS)
def test_every_refusal_matches_the_document(name):
    dialects, described = made()
    chat = described["paths"][dialects[name].routes[0].path]["post"]["responses"]
    run = described["paths"][f"{dialects[name].routes[0].path}/{{run}}/stop"]["post"]["responses"]
    for responses, kinds in ((chat, (*CALLER, *CHAT)), (run, (*CALLER, *RUN))):
        for error in [error for kind in kinds for error in errors_of(kind)]:
            answer = dialects[name].refuse(error, "f00d")
            headers = {key.decode(): value.decode() for key, value in answer.headers}
            response = responses[str(answer.status)]
            assert error.code in response["description"]
            assert set(headers) - {"content-type"} <= set(response["headers"])
            content = response["content"][headers["content-type"].partition(";")[0]]
            if headers["content-type"] == "text/event-stream":
                *_, event = whatwg(answer.body)
                assert json.loads(event.data)["code"] == error.code
                schema_of(described, content["schema"]).validate({"event": event.name, "data": event.data})
                continue
            body = answer.body.decode() if name == "ai_sdk" else json.loads(answer.body)
            schema_of(described, content["schema"]).validate(body)
            if name != "ai_sdk":  # nothing in it that the document does not know
                assert set(body) <= set(described["components"]["schemas"][f"{name}_error"]["properties"])


def test_a_wait_has_its_header():
    for _, _, operation in operations(made()[1]):
        for status in {"409", "429", "502", "504"} & set(operation["responses"]):
            assert "retry-after" in operation["responses"][status]["headers"]


@pytest.mark.parametrize("name", DIALECTS)
def test_the_example_of_a_request_is_one(name):
    dialects, described = made()
    schema_of(described, described["components"]["schemas"][f"{name}_request"]).validate(DIALECTS[name].facts.example)
    assert dialects[name].parse(json.dumps(DIALECTS[name].facts.example).encode()).messages[-1].content == "Hello"


def test_bounds_are_in_it():
    described = made(max_body_bytes=4_321)[1]
    assert "At most 4321 bytes" in described["paths"]["/api/chat"]["post"]["requestBody"]["description"]
    native = described["components"]["schemas"]["native_request"]
    check = schema_of(described, native)
    hello = {"role": "user", "content": "Hello"}
    for wrong in (
        {"messages": []},
        {"messages": [hello] * 1_001},
        {"messages": [{**hello, "role": "robot"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{**hello, "content": [{"type": "image_url"}]}]},
        {"messages": [hello], "max_tokens": "0"},
        {"messages": [hello], "maxTokensPerRequest": "1e3"},
        {"messages": [hello], "max_tokens": 0},
        {"messages": [hello], "temperature": -1},
        {"messages": [hello], "model": "gpt-4o"},
    ):
        assert not check.is_valid(wrong), wrong
    assert check.is_valid({"messages": [hello] * 1_000, "max_tokens": 1, "temperature": 0, "more": None})
    assert check.is_valid({"messages": [hello], "dailyTokenLimit": None, "maxTokensPerRequest": "8000", "profile": 7})
    assert check.is_valid({"messages": [{**hello, "content": [{"type": "text", "text": "\0"}]}], "max_tokens": 1e3})


@pytest.mark.parametrize(
    "key", ["a", "a b", '"a b"', "x" * 255, f'"{"x" * 255}"', "", "x" * 256, "é", "a\tb", f'"{"x" * 256}"']
)
def test_a_key_is_described_as_it_is_read(key):
    described = made()[1]["paths"]["/api/chat"]["post"]["parameters"][0]
    try:
        idempotency_key({"headers": [(b"idempotency-key", key.encode())]})
    except BadRequest:
        read = False
    else:
        read = True
    assert jsonschema_rs.is_valid(described["schema"], key) is read


def test_401_is_listed_only_if_callers_are_identified(tmp_path):
    assert "401" in made()[1]["paths"]["/api/chat"]["post"]["responses"]
    assert "401" not in made(names_callers=False)[1]["paths"]["/api/chat"]["post"]["responses"]
    proxied = '[server]\ncaller_header = "x-user"\ntrusted_proxies = ["127.0.0.1"]\n'
    for text, known in (("", False), (proxied, True)):
        body = body_of(built(tmp_path, text))
        assert ("401" in json.loads(body)["paths"]["/api/usage"]["get"]["responses"]) is known


def test_it_holds_no_secret(tmp_path):
    assert b"secret" not in body_of(built(tmp_path))


def test_a_key_is_required_if_keys_identify_callers() -> None:
    _, described = made(bearer=True)
    assert described["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert described["paths"]["/api/chat"]["post"]["security"] == [{"bearer": []}]
    assert "security" not in described["paths"]["/healthz"]["get"]
    _, described = made()
    assert "securitySchemes" not in described["components"]


def test_the_chat_in_the_document_of_an_application():
    app = {"openapi": "3.1.0", "paths": {"/hello": {"get": {}}}, "components": {"schemas": {"Hello": {}}}}
    chat = create_chat_handler(base_url="http://127.0.0.1:1/v1", dialects=[Native(), OpenAI(), Own()])
    assert add_chat(app, chat, "/ai") is app
    assert {"/hello", "/ai/api/chat", "/ai/v1/chat/completions", "/ai/api/usage"} <= set(app["paths"])
    assert not {"/ai/healthz", "/ai/readyz", "/healthz"} & set(app["paths"])
    assert {"Hello", "native_request", "openai_error"} <= set(app["components"]["schemas"])
    refs = set(re.findall(r'"#/components/(\w+)/(\w[\w-]*)"', json.dumps(app)))
    assert refs
    assert all(name in app["components"][kind] for kind, name in refs), "every reference leads somewhere"


def test_a_document_without_paths_gets_them():
    chat = create_chat_handler(base_url="http://127.0.0.1:1/v1")
    assert "/api/chat" in add_chat({}, chat)["paths"]
    assert add_chat({}, create_chat_handler(base_url="http://127.0.0.1:1/v1", dialect=Own())) == {}


@pytest.mark.parametrize("prefix", ["/ai", "/ai/", "ai", "ai/"])
def test_the_prefix_may_end_in_a_slash(prefix):
    chat = create_chat_handler(base_url="http://127.0.0.1:1/v1")
    assert {"/ai/api/chat", "/ai/api/usage"} <= set(add_chat({}, chat, prefix)["paths"])
    assert "/api/chat" in add_chat({}, chat, "/")["paths"]


def test_what_the_application_has_under_the_same_name_is_not_overwritten():
    chat = create_chat_handler(base_url="http://127.0.0.1:1/v1")
    for own, said in (
        ({"components": {"schemas": {"native_error": {"type": "string"}}}}, "'native_error'"),
        ({"components": {"headers": {"etag": {}}}}, "'etag'"),
        ({"paths": {"/api/usage": {"get": {"summary": "Mine"}}}}, "'/api/usage'"),
    ):
        before = json.dumps(own)
        with pytest.raises(ValueError, match=f"the document has another .*{said}.*give that one another name"):
            add_chat(own, chat)
        assert json.dumps(own) == before
    mine = {"paths": {"/api/usage": {"delete": {"summary": "Mine"}}}}
    once = json.dumps(add_chat(mine, chat))
    assert set(mine["paths"]["/api/usage"]) == {"delete", "get"}
    assert json.dumps(add_chat(mine, chat)) == once, "twice is once"


class Own(Native):
    """A dialect of somebody's own."""

    def __init__(self) -> None:
        super().__init__("/own")
