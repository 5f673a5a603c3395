"""A new field is forgotten nowhere: code that turns one struct into another names every field of it.

A function that a new conversion needs gets a row here. `without` are the fields that it leaves out on purpose.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from msgspec import Struct

import chat_nest
from chat_nest.alerts.events import Alert, Crossing
from chat_nest.alerts.settings import Bounds
from chat_nest.asgi.parts import Parts
from chat_nest.core.claims import Claim, Line
from chat_nest.core.controls import Act, Control
from chat_nest.core.limits import COUNTERS, Limits, Totals
from chat_nest.core.messages import Caller, Format, Message, Options, Tool, ToolCall
from chat_nest.core.protocols import Ending, Prompt
from chat_nest.core.records import Record
from chat_nest.core.usage import Usage
from chat_nest.identity.api_key import ApiKey, Rights
from chat_nest.identity.session_token import Grant
from chat_nest.limits.counters import LIMITS
from chat_nest.limits.spec import HardCaps, Profile
from chat_nest.pipeline.admission import Admission
from chat_nest.server.config import schema
from chat_nest.server.config.alerts import AlertsConfig, Mail
from chat_nest.server.config.provider import ProviderConfig
from chat_nest.server.config.settings import Config
from chat_nest.server.config.visitors import VisitorConfig
from chat_nest.server.config.ways import IdentitySection
from chat_nest.server.page_settings import PageFacts
from chat_nest.stores.rules import Counter, StoredClaim

PACKAGE = Path(chat_nest.__file__).parent


class Conversion(Struct, frozen=True):
    """Code that reads every field of `struct` from `variable`, or passes every field to a call of `variable`."""

    struct: type[Struct]
    place: str
    """MODULE or MODULE:NAME, below chat_nest."""
    variable: str
    without: Sequence[str] = ()


READS = [
    # What was used, in the format of each client. The fields left out have no place in that format.
    Conversion(Usage, "dialects.openai:_usage", "usage", ("cache_write_tokens",)),
    Conversion(Usage, "dialects.responses_stream:usage_of", "usage"),
    Conversion(Usage, "dialects.anthropic_stream:_usage", "usage", ("reasoning_tokens",)),
    Conversion(Usage, "dialects.ag_ui", "usage"),
    # Reasoning costs as much as other output.
    Conversion(Usage, "core.usage:Price.cost", "usage", ("reasoning_tokens",)),
    Conversion(Usage, "stores.reports:request_row", "usage"),
    # The start has a function of its own; whether a key can be used again is in the row of the reservation.
    Conversion(Record, "stores.reports:request_row", "record", ("started_at", "spent_nothing")),
    # A reader of an ending knows when it began, and has the error; prices are for operators.
    Conversion(Record, "pipeline.outcome:_ending", "record", ("started_at", "price", "ending", "spent_nothing")),
    # What only the answer's own reader needs is not logged.
    Conversion(
        Ending,
        "observers.log:LogObserver.finished",
        "ending",
        ("remaining", "dropped_messages", "signature", "dropped_images"),
    ),
    # A prompt, for each API. The options left out have no parameter there.
    *(
        Conversion(Prompt, f"providers.{name}", "prompt")
        for name in ("openai_codec", "anthropic", "gemini", "ollama", "responses")
    ),
    Conversion(Options, "providers.openai_codec", "options", ("summary", "encrypted_reasoning")),
    Conversion(
        Options,
        "providers.anthropic",
        "options",
        ("seed", "frequency_penalty", "presence_penalty", "summary", "verbosity", "encrypted_reasoning"),
    ),
    Conversion(
        Options,
        "providers.gemini",
        "options",
        ("frequency_penalty", "presence_penalty", "verbosity", "encrypted_reasoning"),
    ),
    Conversion(
        Options,
        "providers.ollama",
        "asked|options",
        ("effort", "summary", "verbosity", "encrypted_reasoning"),
    ),
    Conversion(
        Options,
        "providers.responses",
        "options",
        ("seed", "top_k", "frequency_penalty", "presence_penalty"),
    ),
    # Signatures are this server's own, and checked before; only two APIs read thoughts again.
    *(
        Conversion(Message, f"providers.{name}", "message", ("thoughts", "signature", "ours"))
        for name in ("gemini", "ollama")
    ),
    *(
        Conversion(Message, f"providers.{name}", "message", ("signature", "ours"))
        for name in ("openai_codec", "anthropic", "responses")
    ),
    # A namespace is in the name of the tool already.
    *(
        Conversion(Tool, f"providers.{name}", "tool", ("namespace",))
        for name in ("openai_codec", "anthropic", "responses")
    ),
    *(Conversion(Tool, f"providers.{name}", "tool", ("strict", "namespace")) for name in ("gemini", "ollama")),
    *(
        Conversion(ToolCall, f"providers.{name}", "call")
        for name in ("openai_codec", "anthropic", "gemini", "ollama", "responses")
    ),
    *(Conversion(Format, f"providers.{name}", "format") for name in ("openai_codec", "responses")),
    # Claims, in the words of each store. A refusal names a line by its index.
    Conversion(Line, "stores.redis.batches:_line", "line", ("name", "scope")),
    Conversion(Line, "stores.postgres.batches:reserve_values", "line", ("scope",)),
    Conversion(Line, "stores.postgres.store", "line", ("scope",)),
    Conversion(Claim, "stores.rules:Book.reserve", "claim"),
    Conversion(Claim, "stores.redis.batches:reserve_word", "call.claim", ("max_output_tokens",)),  # `output`, cut to it
    Conversion(Claim, "stores.postgres.batches:reserve_values", "claim", ("record",)),  # `asked.record`, as JSON
    Conversion(StoredClaim, "stores.sqlite.file:_row", "reservation"),
    Conversion(Counter, "stores.sqlite.file", "c"),
    Conversion(Control, "stores.sqlite.controls:change_controls", "row"),
    Conversion(Control, "stores.redis.controls:RedisControls.change", "row"),
    Conversion(Control, "stores.postgres.controls:PostgresControls.change", "row"),
    Conversion(Act, "stores.sqlite.controls:change_controls", "act", ("at",)),  # the store's own time
    # Keys, sessions and limits. A hash, and the key that shares its counters, are shown to no one.
    Conversion(Rights, "identity.api_key:make_key", "rights"),
    Conversion(ApiKey, "identity.api_key:rotate_key", "old", ("hash", "created", "revoked")),  # the new key's own
    Conversion(ApiKey, "cli.issued:row", "key", ("hash", "counts_as")),
    Conversion(ApiKey, "server.issuing:described", "key", ("hash", "counts_as")),
    Conversion(Grant, "identity.sessions:Sessions", "grant", ("created",)),
    Conversion(Totals, "limits.profiles:_totals", "totals"),
    Conversion(HardCaps, "limits.lowering:capped", "caps"),
    # The ceiling decides which profile it is, and the models; LIMITS are lowered by their table.
    Conversion(Profile, "limits.lowering:lowered", "chosen", ("name", "open", "model", "fallbacks", "ladder", *LIMITS)),
    # Settings, as what they configure.
    # The accepted ways and the secret are resolved before.
    Conversion(
        IdentitySection, "server.config.ways", "section|given.section|known.section", ("accept", "secret", "secret_env")
    ),
    Conversion(schema.AlertsSection, "server.config.alerts", "section"),
    Conversion(VisitorConfig, "server.config.visitors:make_visitors", "config", ("challenge", "challenge_secret")),
    # The other fields are for profiles, for limits and for messages to operators.
    Conversion(
        ProviderConfig,
        "server.providers:make_provider",
        "config",
        ("key_from", "counting", "concurrent_streams", "model"),
    ),
    Conversion(Crossing, "alerts.events:Crossing.alert", "self"),
    Conversion(Alert, "alerts.events:payload", "alert", ("id",)),  # a header
]

BUILDS = [
    Conversion(Config, "server.config.settings:load", "Config"),
    Conversion(ProviderConfig, "server.config.providers:_provider", "ProviderConfig"),
    Conversion(VisitorConfig, "server.config.visitors", "VisitorConfig"),
    Conversion(AlertsConfig, "server.config.alerts", "AlertsConfig"),
    Conversion(Bounds, "server.config.alerts", "Bounds"),
    Conversion(Mail, "server.config.alerts", "Mail"),
    Conversion(PageFacts, "server.front", "PageFacts"),
    Conversion(Parts, "asgi.parts", "Parts"),
    Conversion(Admission, "pipeline.admission:admission_of", "Admission"),
    Conversion(Claim, "pipeline.admission:admission_of", "Claim"),
    Conversion(Prompt, "pipeline.prompt:make_prompt", "Prompt"),
    Conversion(Record, "pipeline.outcome:make_record", "Record"),
    # The request adds these three.
    Conversion(Ending, "pipeline.outcome:_ending", "Ending", ("dropped_messages", "dropped_images", "signature")),
    Conversion(Line, "limits.profiles:Profiles", "Line"),
    Conversion(Line, "limits.profiles:_totals", "Line"),
    Conversion(ApiKey, "identity.api_key:make_key", "ApiKey", ("revoked", "counts_as", "rotated_to")),
    Conversion(Rights, "identity.api_key:rotate_key", "Rights"),
    Conversion(Rights, "server.admin.key_acts:create", "Rights"),
    Conversion(Rights, "cli.keys", "Rights"),
    # Only Visitors know a visit; a key has no ceiling.
    Conversion(Caller, "identity.api_key:ApiKey", "Caller", ("profile", "visit")),
    Conversion(Caller, "identity.sessions:Sessions._verify", "Caller", ("visit",)),
]


def read_in(tree: ast.AST, variable: str) -> set[str]:
    """The fields that are read from the variable, or named by a loop that reads them with getattr."""
    nodes, variables = [*ast.walk(tree)], variable.split("|")
    loops = [each for node in nodes if isinstance(node, ast.For) for each in ast.walk(node.iter)]
    named = {str(each.value) for each in loops if isinstance(each, ast.Constant)}
    fields = [node for node in nodes if isinstance(node, ast.Attribute)]
    return named | {node.attr for node in fields if ast.unparse(node.value).removeprefix("prompt.") in variables}


def passed_in(tree: ast.AST, called: str) -> set[str]:
    """The names of the arguments that the longest call passes."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == called]
    return max(({str(each.arg) for each in call.keywords} for call in calls), key=len, default=set())


@cache
def tree_of(place: str) -> ast.AST:
    module, _, name = place.partition(":")
    found = importlib.import_module(f"chat_nest.{module}")
    for part in filter(None, name.split(".")):
        found = inspect.getattr_static(found, part)
    return ast.parse(textwrap.dedent(inspect.getsource(found)))


def forgotten(fields: Sequence[str], conversion: Conversion, known: set[str]) -> list[str]:
    """The fields that are neither named nor left out on purpose, and those left out that are named all the same."""
    return [name for name in fields if (name in known) == (name in conversion.without)]


def shown(conversion: Conversion) -> str:
    return f"{conversion.struct.__name__} {conversion.place}"


@pytest.mark.parametrize("conversion", READS, ids=shown)
def test_every_field_is_read(conversion: Conversion) -> None:
    known = read_in(tree_of(conversion.place), conversion.variable)
    assert forgotten(conversion.struct.__struct_fields__, conversion, known) == []


@pytest.mark.parametrize("conversion", BUILDS, ids=shown)
def test_every_field_is_given(conversion: Conversion) -> None:
    known = passed_in(tree_of(conversion.place), conversion.variable)
    assert forgotten(conversion.struct.__struct_fields__, conversion, known) == []


def test_a_new_field_is_noticed() -> None:
    for conversion in READS:
        known = read_in(tree_of(conversion.place), conversion.variable)
        fields = (*conversion.struct.__struct_fields__, "a_new_field")
        assert forgotten(fields, conversion, known) == ["a_new_field"]


def test_every_limit_has_its_rule_in_the_table() -> None:
    assert {spec.name for spec in COUNTERS} == set(Limits.__struct_fields__)
    assert set(Limits.__struct_fields__) <= set(LIMITS) <= set(Profile.__struct_fields__)


@cache
def read_by_the_server() -> set[str]:
    """Every name of an attribute in the rooms that use a configuration."""
    trees = [ast.parse(file.read_text()) for room in ("server", "cli") for file in (PACKAGE / room).rglob("*.py")]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


SECTIONS = sorted(name for name in vars(schema) if name.endswith("Section"))


@pytest.mark.parametrize("name", [*SECTIONS, "Config"])
def test_every_setting_is_read_somewhere(name: str) -> None:
    struct: type[Struct] = Config if name == "Config" else getattr(schema, name)
    assert set(struct.__struct_fields__) - read_by_the_server() == set()
