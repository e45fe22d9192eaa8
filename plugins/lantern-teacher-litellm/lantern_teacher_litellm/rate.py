"""Limits per minute, of requests and of tokens."""

import asyncio

from aiolimiter import AsyncLimiter


class Rate:
    """Lets so many a minute through, a second's worth of them at once. To be used in one event loop.

    A bucket of a whole minute would let twice as many through in its first minute, which providers refuse.
    """

    def __init__(self, per_minute: float) -> None:
        burst = max(per_minute / 60, 1.0)
        self._limiter = AsyncLimiter(burst, 60 * burst / per_minute)
        self._turn = asyncio.Lock()

    async def take(self, amount: float = 1.0) -> None:
        """Wait until `amount` may go through; it may be more than what goes through at once."""
        # In turn: of many that wait for parts, none would be done before all are.
        async with self._turn:
            while amount > 0:
                part = min(amount, self._limiter.max_rate)
                await self._limiter.acquire(part)
                amount -= part
