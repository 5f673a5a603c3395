"""The line of a value in a TOML file, which tomllib does not tell."""

from __future__ import annotations

import tomllib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_nest.server.config.settings import load
from chat_nest.server.config.sources import line_of

TEXT = '''\
# top = "not this"
top = 1
[a]
b.c = 1
"q.r" = """
[a.z]
z = 3
"""
list = [
  1, # ]
  2,
]
'single' = {inline = 1, other = 2}
[a."d e"]
f = 1
[[array]]
x = 1
'''


def test_the_line_where_a_value_begins():
    for path, line in {
        ("top",): 2,
        ("a",): 3,
        ("a", "b"): 4,
        ("a", "b", "c"): 4,
        ("a", "q.r"): 5,
        ("a", "list"): 9,
        ("a", "single", "inline"): 13,
        ("a", "d e"): 14,
        ("a", "d e", "f"): 15,
        ("array",): 16,
    }.items():
        assert line_of(TEXT, path) == line, path


def test_a_missing_value_is_located_at_the_nearest_table():
    assert line_of(TEXT, ("a", "d e", "nothing")) == 14
    assert line_of(TEXT, ("a", "z")) == 3
    assert line_of(TEXT, ("nothing",)) == 0


names = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=8)
values = st.sampled_from(["1", '"x"', '"""\n[t]\nk = 1\n"""', "[\n1,\n2\n]", "{k = 1}", "'''\n\n'''"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(st.tuples(st.lists(names, min_size=1, max_size=3), values, st.integers(0, 2)), max_size=6))
def test_the_line_is_that_of_the_statement(statements):
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for path, value, blank in statements:
        dotted = ".".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in path)
        statement = [*("# k = 1" for _ in range(blank)), f"{dotted} = {value}"]
        try:
            tomllib.loads("\n".join([*lines, *statement]))
        except tomllib.TOMLDecodeError:
            continue  # the key is taken
        expected[tuple(path)] = len("\n".join([*lines, *statement[:-1], ""]).split("\n"))
        lines += "\n".join(statement).split("\n")
    for path, line in expected.items():
        assert line_of("\n".join(lines), path) == line


def test_a_long_file_is_parsed_twice_and_no_more(tmp_path, monkeypatch):
    names = range(200)
    text = "".join(
        f'[providers.p{n}]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\napi_key = "k{n}"\n' for n in names
    )
    file = tmp_path / "chat.toml"
    file.write_text(text + '[profiles.balanced]\nmodel = "p0:m"\n')
    parsed: list[int] = []
    loads = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: parsed.append(len(text)) or loads(text))
    config = load(str(file), {})
    assert config.providers["p199"].key_from == f"{file}:800: providers.p199.api_key"
    assert sum(parsed) <= 2 * len(file.read_text())
