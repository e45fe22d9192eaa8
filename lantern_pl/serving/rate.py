"""How much each client may ask: token buckets in a table that doesn't grow, and requests in hand at once."""

import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lantern_pl.serving.errors import ServiceError

MAX_CLIENTS = 10_000


class RateLimit:
    """A token bucket for each client.

    Args:
        rate: tokens that come back each second.
        burst: tokens of a full bucket.
        now: the clock, in seconds.
    """

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, tokens: int = 1) -> float:
        """Take so many tokens. Returns 0, or the seconds until they would be there, with none taken.

        Of `MAX_CLIENTS` clients the one that was quiet the longest is forgotten for a new one.
        """
        now = self._now()
        left, since = self._buckets.pop(client, (float(self.burst), now))
        left = min(float(self.burst), left + (now - since) * self.rate)
        wait = max(0.0, (tokens - left) / self.rate)
        self._buckets[client] = (left if wait else left - tokens, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._buckets)


class InHand:
    """The requests that wait for their answers.

    Args:
        most: how many there may be.
        most_of_client: how many of one client.
    """

    def __init__(self, most: int, most_of_client: int) -> None:
        self.most = most
        self.most_of_client = most_of_client
        self.count = 0
        self._of_client: Counter[str] = Counter()

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """While a request of this client is in hand. Raises ServiceError where there are as many as there may be."""
        if self._of_client[client] >= self.most_of_client:
            message = f"You have {self.most_of_client} requests in hand, as many as a client may: wait for their answers."
            raise ServiceError(429, "too_many_requests", message, 1.0)
        if self.count >= self.most:
            raise ServiceError(503, "overloaded", f"{self.most} requests are in hand, as many as may be: try again.", 1.0)
        self.count += 1
        self._of_client[client] += 1
        try:
            yield
        finally:
            self.count -= 1
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]


def client_of(address: str) -> str:
    """By what a client is known: its address, of IPv6 the network of 64 bits, all of which one client may have."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
