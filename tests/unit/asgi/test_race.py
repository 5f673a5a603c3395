from __future__ import annotations
import asyncio
from contextlib import asynccontextmanager
import pytest
from chat_nest import create_chat_handler, Timeouts
from chat_nest.testing import ScriptedProvider, answer, collect

class Late(ScriptedProvider):
    def __init__(self, seconds, script):
        super().__init__(script); self.seconds=seconds
    @asynccontextmanager
    async def open(self, prompt, timeouts):
        async with super().open(prompt, timeouts) as batches:
            self.t=asyncio.get_running_loop().time()
            await asyncio.sleep(self.seconds)
            yield batches

@pytest.mark.parametrize("early", [0, 1e-12, 1e-11, 1e-10, 5e-10])
@pytest.mark.looptime(start=0)
async def test_race(early):
    provider = Late(1.0-early, answer("a"))
    h = create_chat_handler(providers={"p": provider}, model="p:m", timeouts=Timeouts(write=30))
    got = await collect(h, {"messages":[{"role":"user","content":"x"}]})
    print([e for e,_ in got.events], asyncio.get_running_loop().time())
    assert [e for e,_ in got.events]==["start","token","done"]
    await h.aclose()
