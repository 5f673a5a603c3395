"""Runs a driver again and again in this process, so that its packages load once.

Each line of standard input is a JSON array [URL, OPTIONS]; {"event": "over"} follows what a case printed. With
OPTIONS["defaults"] a driver leaves its package's retries as they are, and their waits are skipped.
"""

import asyncio
import json
import runpy
import sys
from contextlib import ExitStack
from functools import partial
from unittest import mock

driver = sys.argv[1]
for line in sys.stdin:
    url, options = json.loads(line)
    sys.argv = [driver, url, json.dumps(options)]
    sys.modules.pop("say", None)
    with ExitStack() as stack:
        if options.get("defaults"):
            yielding = partial(asyncio.sleep, 0)
            stack.enter_context(mock.patch("time.sleep", lambda _seconds: None))
            stack.enter_context(mock.patch("asyncio.sleep", lambda _seconds, *_result: yielding()))
        runpy.run_path(driver, run_name="__main__")
    print(json.dumps({"event": "over"}), flush=True)
