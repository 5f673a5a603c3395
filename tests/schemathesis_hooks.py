"""What schemathesis is told in its own process, by SCHEMATHESIS_HOOKS: see explored.py.

Each answer is a line of JSON in the file EXPLORED. A valid Idempotency-Key gets a number, else one key for all would
make every chat but the first a repetition; every other question about a run is about the last one that there was.
"""

from __future__ import annotations

import json
import os
import re

import schemathesis

RUN = re.compile(r"/\{run\}/(?:stop|stream)$")


class Seen:
    calls = 0
    run = ""


@schemathesis.hook
def before_call(context, case, kwargs):
    Seen.calls += 1
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!#-~]{1,200}", key):
        case.headers["Idempotency-Key"] = f"{key}{Seen.calls}"
    allowed = case.meta is not None and case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE
    if allowed and Seen.run and Seen.calls % 2 and RUN.search(case.operation.path):
        case.path_parameters["run"] = Seen.run


@schemathesis.hook
def after_call(context, case, response):
    headers = {name.lower(): values[0] for name, values in response.headers.items()}
    chat = RUN.search(case.operation.path) is None and case.operation.method in ("post", "get")
    streamed = headers.get("content-type", "").startswith("text/event-stream")
    if chat and streamed:
        Seen.run = headers["x-request-id"]
    asked = response.request
    line = {
        "path": case.operation.path,
        "method": asked.method,
        "status": response.status_code,
        "replayed": "idempotency-replayed" in headers,
    }
    with open(os.environ["EXPLORED"], "a") as file:
        file.write(json.dumps(line) + "\n")
