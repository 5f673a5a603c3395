"""llama.cpp's own HTTP server with a tiny model of random weights: a real provider that talks nonsense, fast.

    async with llama() as base_url:      # "http://127.0.0.1:PORT/v1"
        ...

The model, about 300 kB, is made when it is first needed and lives in the given directory, or a temporary one. The
server is native code, so it runs as a child process: `python tests/llama.py MODEL`. It ends when its standard input
does. Needs xllamacpp, gguf and numpy.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

MODEL = "tiny-random"
CONTEXT = 16_384
LAYERS, WIDTH, HEADS, FEED_FORWARD = 1, 64, 4, 128
WORDS = "the a of to and in is it you that for on with as this sea rain light stream token".split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens, and the merges that build the words from bytes; each word has its space in front."""
    alphabet = byte_alphabet()
    tokens, merges = list(alphabet), []
    for word in WORDS:
        left, *rest = (alphabet[byte] for byte in f" {word}".encode())
        for right in rest:
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
            left += right
    return tokens, merges


def write_model(path: Path) -> None:
    """A llama of one layer in GGUF. Its answers are printable ASCII, mostly words, and hardly ever end by themselves."""
    import gguf
    import numpy as np

    tokens, merges = vocabulary()
    ordinary = len(tokens)
    random = np.random.default_rng(7)

    def weights(*shape: int, scale: float = 0.1) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    size = ordinary + len(SPECIAL)
    output = weights(size, WIDTH, scale=0.005)  # small rows are hardly ever the likeliest
    output[256:ordinary] = weights(ordinary - 256, WIDTH, scale=0.4)
    output[0x21:0x7F] = weights(0x7F - 0x21, WIDTH, scale=0.2)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(MODEL)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + SPECIAL)
    writer.add_token_types([gguf.TokenType.NORMAL] * ordinary + [gguf.TokenType.CONTROL] * len(SPECIAL))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ordinary)
    writer.add_eos_token_id(ordinary + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", weights(size, WIDTH, scale=0.5))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(WIDTH, WIDTH))
        for name, shape in (
            ("ffn_gate", (FEED_FORWARD, WIDTH)),
            ("ffn_up", (FEED_FORWARD, WIDTH)),
            ("ffn_down", (WIDTH, FEED_FORWARD)),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@asynccontextmanager
async def llama(directory: Path | None = None) -> AsyncIterator[str]:
    """A running server; yields its base URL. `directory` keeps the model between calls."""
    from chat_nest.providers import demo_server  # here: this file's own process does without the package

    with tempfile.TemporaryDirectory() as temporary:
        model = (directory or Path(temporary)) / f"{MODEL}.gguf"
        if not model.exists():
            await asyncio.to_thread(write_model, model)
        pipe = asyncio.subprocess.PIPE
        environment = {**os.environ, "LD_LIBRARY_PATH": demo_server.library_path()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(model), stdin=pipe, stdout=pipe, env=environment
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            async for line in process.stdout:
                if line.startswith(b"ready "):
                    yield line.split()[1].decode() + "/v1"
                    break
            else:
                raise RuntimeError("llama.cpp did not start")
        finally:
            process.stdin.close()
            await process.stdout.read()
            await process.wait()


def main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT
    params.n_parallel = 8
    params.n_threads_http = 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print("ready", server.listening_address, flush=True)
    while os.read(0, 4096):
        pass
    os._exit(0)  # native threads may be busy, and have nothing to save


if __name__ == "__main__":
    main()
