"""[admin]: the place of the operators' listener, and its keys."""

from __future__ import annotations

import pytest

from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import ConfigError

KEY = "k3y-0123456789abcdef0123456789abcdef"
LISTEN = '[admin]\nlisten = "127.0.0.1:9080"\n'


def loaded(folder, text="", **environ):
    (folder / "c.toml").write_text(text)
    return load(str(folder / "c.toml"), {"OPENAI_API_KEY": "sk-x", **environ})


def test_without_it_there_is_no_listener(tmp_path):
    assert loaded(tmp_path).admin_listen == ""


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:9080", "localhost:9080", "unix:/run/chat-nest/a.sock"])
def test_places_of_this_machine_give_no_warning(tmp_path, listen):
    config = loaded(tmp_path, f'[admin]\nlisten = "{listen}"\n', CHAT_NEST_ADMIN_KEY=KEY)
    assert config.admin_listen == listen
    assert [key.reveal() for key in config.admin_keys] == [KEY]
    assert config.notes == ()


@pytest.mark.parametrize("listen", ["0.0.0.0:9080", "[::]:9080", "192.0.2.1:9080", "example.com:9080"])
def test_an_address_for_other_machines_gives_a_warning(tmp_path, listen):
    [note] = loaded(tmp_path, f'[admin]\nlisten = "{listen}"\n', CHAT_NEST_ADMIN_KEY=KEY).notes
    assert "admin.listen: other machines can connect, and the key crosses the network in clear text" in note


def test_the_file_has_several_keys_and_the_variable_overrides_it(tmp_path):
    (tmp_path / "keys").write_text(f"# old\n{KEY}\n\n  {KEY}2  \n")
    text = f'{LISTEN}key_file = "{tmp_path}/keys"\n'
    assert [key.reveal() for key in loaded(tmp_path, text).admin_keys] == [KEY, f"{KEY}2"]
    assert [key.reveal() for key in loaded(tmp_path, text, CHAT_NEST_ADMIN_KEY=KEY).admin_keys] == [KEY]


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ('[admin]\nlisten = "9080"\n', {}, "admin.listen: must be HOST:PORT"),
        ('[admin]\nlisten = "127.0.0.1:99999"\n', {}, "admin.listen: must be HOST:PORT"),
        ('[admin]\nlisten = "unix:canary.sock"\n', {}, "admin.listen: must be unix: and an absolute path"),
        ('[admin]\nlisten = "127.0.0.1:8000"\n', {}, "admin.listen: must differ from the address of the chat"),
        (LISTEN + "# no key\n", {}, "admin: needs a key: set CHAT_NEST_ADMIN_KEY"),
        (LISTEN, {"CHAT_NEST_ADMIN_KEY": "canary"}, "key 1 must be 32 to 4096 visible ASCII characters"),
        (LISTEN, {"CHAT_NEST_ADMIN_KEY": "canary " * 9}, "without a space"),
        (f'{LISTEN}key = "{KEY}"\nkey_file = "x"\n', {}, "admin.key_file: give either key or key_file, not both"),
        (f'{LISTEN}key_file = "/canary/no"\n', {}, "admin.key_file: can't be read: No such file or directory"),
    ],
)
def test_problems_name_the_place_and_the_rule(tmp_path, text, environ, said):
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text, **({} if "key" in text else {"CHAT_NEST_ADMIN_KEY": KEY, **environ}))
    assert any(said in problem for problem in refused.value.problems), refused.value.problems
    assert "canary" not in str(refused.value.problems)


def test_a_key_without_a_listener_is_noted(tmp_path):
    [note] = loaded(tmp_path, "", CHAT_NEST_ADMIN_KEY=KEY).notes
    assert "admin: has no effect without admin.listen" in note


def test_an_api_key_can_be_the_only_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"CHAT_NEST_IDENTITY_SECRET": KEY, "CHAT_NEST_STORE_URL": "sqlite:///store.db"}
    config = loaded(tmp_path, LISTEN, CHAT_NEST_IDENTITY_KEYS="store", **environ)
    assert config.admin_keys == ()
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ConfigError, match="admin.key_file: needs a key"):
        loaded(tmp_path, f'{LISTEN}key_file = "keys"\n', CHAT_NEST_IDENTITY_KEYS="store", **environ)
