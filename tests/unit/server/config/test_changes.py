"""What a reload puts in force, and what takes a restart."""

from __future__ import annotations

import pytest

from chat_nest.server.config.changes import CHANGED_OF_SERVER, CHANGED_WHOLE, changes_of
from chat_nest.server.config.schema import ServerSection
from chat_nest.server.config.settings import Config, load

ENVIRON = {"OPENAI_API_KEY": "sk-before"}


def read(folder, text: str, **environ: str) -> Config:
    (folder / "c.toml").write_text(text)
    return load(str(folder / "c.toml"), {**ENVIRON, **environ})


@pytest.mark.parametrize(
    ("text", "changed", "kept"),
    [
        ("", (), ()),
        ("[limits]\ntokens_per_day = 5_000", ("limits.tokens_per_day",), ()),
        ("[groups.staff]\ntokens_per_day = 5_000", ("groups.staff",), ()),
        ("[server]\nport = 9\nmax_streams = 5", ("server.max_streams",), ("server.port",)),
        ('[store]\nurl = "sqlite:///x.db"\nrecords_days = 3', (), ("store.url", "store.records_days")),
        ("[runs]\nkeep_seconds = 3", (), ("runs.keep_seconds",)),
        ("[timeouts]\nfirst_token = 3", (), ("timeouts.first_token",)),
        ('[page]\ntitle = "x"', ("page.title",), ()),
        ('[dialects]\nopenai = "/x"', ("dialects.openai",), ()),
        ('[server]\ncaller_secret = "01234567890123456789012345678901"', (), ("server.caller_secret",)),
    ],
)
def test_each_key_is_named_as_in_the_file(tmp_path, text, changed, kept):
    before = read(tmp_path, "")
    found = changes_of(before, read(tmp_path, text))
    assert (found.changed, found.kept) == (changed, kept)


def test_a_key_is_compared_and_never_named(tmp_path):
    before = read(tmp_path, "")
    found = changes_of(before, read(tmp_path, "", OPENAI_API_KEY="sk-after"))
    assert found.changed == ("providers.openai",)
    assert found.config.providers["openai"].api_key.reveal() == "sk-after"
    assert "sk-" not in repr(found)


def test_settings_that_need_a_restart_stay_unchanged_in_the_result(tmp_path):
    before = read(tmp_path, "")
    found = changes_of(before, read(tmp_path, '[server]\nport = 9\nmax_streams = 5\n[store]\nurl = "sqlite:///x.db"'))
    assert found.config.server.port == before.server.port
    assert found.config.server.max_streams == 5
    assert found.config.store == before.store


def test_the_names_are_those_of_fields():
    assert set(Config.__struct_fields__) >= CHANGED_WHOLE
    assert set(ServerSection.__struct_fields__) >= CHANGED_OF_SERVER
