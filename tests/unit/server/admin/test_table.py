"""The OpenAPI document of the operators' listener, and the documentation, have every route."""

from __future__ import annotations

import re
from pathlib import Path


from chat_nest.server.admin.table import ROUTES, document

OPERATIONS = (Path(__file__).parents[4] / "docs/operations.md").read_text()


def test_the_document_has_every_route():
    found = document()
    methods = {(method.upper(), path) for path, item in found["paths"].items() for method in item}
    assert methods == {(route.method, route.path) for route in ROUTES}
    assert found["paths"]["/healthz"]["get"]["security"] == []


def test_only_healthz_needs_no_key():
    assert [route.path for route in ROUTES if not route.needs_key] == ["/healthz"]


def test_every_route_is_in_the_documentation():
    part = OPERATIONS.split("## The operators' listener")[1].split("\n## ")[0]
    for route in ROUTES:
        last = route.path.removesuffix("/{id}/stop").removesuffix("/{id}").rpartition("/")[2]
        assert re.search(rf"[`/ ]{re.escape(last)}\b", part), route.path
