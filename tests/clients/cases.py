"""Runs a driver again and again in this process, so that its packages load once.

Each line of standard input is a JSON array [URL, OPTIONS]; {"event": "over"} follows what a case printed.
"""

import json
import runpy
import sys

driver = sys.argv[1]
for line in sys.stdin:
    url, options = json.loads(line)
    sys.argv = [driver, url, json.dumps(options)]
    sys.modules.pop("say", None)
    runpy.run_path(driver, run_name="__main__")
    print(json.dumps({"event": "over"}), flush=True)
