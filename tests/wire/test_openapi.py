"""What `chat-nest serve` answers is what its OpenAPI document says, whatever is asked."""

from __future__ import annotations

from pathlib import Path

from explored import explore


async def test_no_request_breaks_the_server_and_every_answer_is_documented(tmp_path: Path) -> None:
    options = ("--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--generation-deterministic")
    wrong = await explore(tmp_path, *options)
    assert not wrong, "\n".join(wrong)
