"""The names of profiles: the default one, and the one that a client means."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from chat_nest.limits.spec import Profile

OLD_NAMES = {"budget": "constrained", "moderate": "balanced", "free": "expanded"}
"""chat-nest-server's names of the built-in profiles before version 1."""


def default_name(profiles: Mapping[str, Profile], named: str | None = None) -> str:
    """Return the lower-case name of the default profile, for a caller to whom no profile is assigned.

    It is `named`, else `balanced`, else the only profile, else the only one with `open=True`. Raises ValueError, which
    names `default_profile`, if that is no profile, or is closed while another profile is open.
    """
    names = [plain_name(name) for name in profiles]
    open_names = [plain_name(name) for name, profile in profiles.items() if profile.open]
    if named is not None:
        name = find_name(names, named)
        if name is None:
            raise ValueError(f"default_profile must name one of the profiles: {', '.join(names)}")
    else:
        only = next((each[0] for each in (names, open_names) if len(each) == 1), None)
        name = "balanced" if "balanced" in names else only
        if name is None:
            said = f"default_profile must name the profile of a caller without its own: {', '.join(names)}"
            raise ValueError(f'{said}; write default_profile="{names[0]}", for example')
    if open_names and any(plain_name(each) == name and profile.open is False for each, profile in profiles.items()):
        msg = f"default_profile is {name}, which is closed, while {open_names[0]} is open: name an open one"
        raise ValueError(f"{msg}, or close every profile")
    return name


def find_name(names: Collection[str], asked: str) -> str | None:
    """Return the profile's name for `asked`, in any case and by chat-nest-server's old names."""
    name = plain_name(asked)
    return next((each for each in (name, OLD_NAMES.get(name, name)) if each in names), None)


def plain_name(name: str) -> str:
    return name.strip().lower()
