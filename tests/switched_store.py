"""A link to a store that can be switched off, in each of the ways in which a store is away."""

from __future__ import annotations

import asyncio


class Switched:
    """One process's link to a store it shares. `how`:

    on      every call is answered
    fails   no call reaches the store
    hangs   the same, and nobody says so
    lost    every call takes effect, and its answer is lost
    late    every call takes effect after 3 s, when nobody waits for it any more: a frozen server that goes on
    """

    def __init__(self, store, how="on"):
        self.store = store
        self.how = how
        self.asked = []

    async def _call(self, name, *args):
        self.asked.append(name)
        how = self.how
        call = getattr(self.store, name)
        if how in ("on", "lost"):
            answer = await call(*args)
        if how == "late":
            asyncio.get_running_loop().call_later(3, lambda: asyncio.ensure_future(call(*args)))
        if how in ("hangs", "late"):
            await asyncio.Event().wait()
        if how != "on":
            raise ConnectionError("secret-dsn")
        return answer

    async def reserve(self, claim, lease):
        return await self._call("reserve", claim, lease)

    async def extend(self, claims, lease):
        return await self._call("extend", claims, lease)

    async def settle(self, claim, actual, source, record=None):
        return await self._call("settle", claim, actual, source, record)

    async def release(self, claim):
        return await self._call("release", claim)

    async def peek(self, lines):
        return await self._call("peek", lines)

    async def sweep(self):
        return await self._call("sweep")

    async def ping(self):
        await self._call("ping")

    async def aclose(self):
        return
