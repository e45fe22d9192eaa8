"""How many requests may be open at once, found out while asking."""

import asyncio
from collections import deque

FIRST = 8
CUT = 0.75


class Allowance:
    """Additive increase, multiplicative decrease: what a server can take isn't known, and changes.

    It starts low. Until the server has refused a request for the first time, each success adds one; from then on, each
    window of successes, as many as are allowed at once, adds one. A refusal (HTTP 429) leaves three quarters of it, once
    for all the requests that were open together, which are likely to be refused together.

    It grows only while it's used up, so that it never promises what wasn't tried. To be used in one event loop.

    Args:
        most: what it never goes beyond.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(FIRST, most))
        self.open = 0
        self._cuts = 0
        self._held_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()

    async def enter(self) -> int:
        """Wait for a place. The ticket that comes back says when it was given: hand it to `refused`."""
        if not self._has_room():
            place = self._loop.create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                # The place may have been given at the same moment.
                if place.done() and not place.cancelled():
                    self.leave()
                raise
        else:
            self.open += 1
        return self._cuts

    async def outlast_hold(self) -> bool:
        """For who has a place, and has waited in it: wait until the server may be asked. Whether that took time."""
        held = self._held_until > self._loop.time()
        while (rest := self._held_until - self._loop.time()) > 0:
            await asyncio.sleep(rest)
        return held

    def leave(self) -> None:
        """Give the place back: once for each `enter`."""
        self.open -= 1
        self._admit()

    def succeeded(self) -> None:
        """The server has answered. To be called before `leave`."""
        if self.open >= int(self.limit):
            self.limit = min(float(self.most), self.limit + (1 if self._cuts == 0 else 1 / self.limit))
            self._admit()

    def refused(self, ticket: int, hold: float | None) -> None:
        """The server had too many requests; with `hold` it said for how many seconds it wants none."""
        if ticket == self._cuts:
            self._cuts += 1
            self.limit = max(1.0, self.limit * CUT)
        if hold:
            self._held_until = max(self._held_until, self._loop.time() + hold)
            self._loop.call_at(self._held_until, self._admit)

    def _has_room(self) -> bool:
        return self.open < int(self.limit) and self._loop.time() >= self._held_until

    def _admit(self) -> None:
        while self._waiting and self._has_room():
            place = self._waiting.popleft()
            if not place.done():
                self.open += 1
                place.set_result(None)
