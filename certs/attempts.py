"""Who tries too often: a bucket of tokens for each address. Pure.

An attempt takes a token from its address's bucket, which holds `burst` at most and gains `rate` per second. Addresses of IPv6 are one for
each network of 64 bits, for whoever has one of them has all. Memory is bounded: of more than MOST_ADDRESSES the one that has been quiet
for longest is forgotten, and with it what it had spent.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

MOST_ADDRESSES = 4096
_NETWORK = 64


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    # Whether it was said that it is empty.
    is_told: bool = False


class Attempts:
    """Counts attempts by address. Owned by whoever has the clock."""

    def __init__(self, burst: int, rate: float) -> None:
        """`burst` attempts at once, and `rate` more per second."""
        self._burst = burst
        self._rate = rate
        # The one that was quiet for longest first.
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, address: str, now: float) -> bool:
        """Count an attempt; False if it is one too many, which costs nothing more."""
        bucket = self._bucket(address, now)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        bucket.is_told = False
        return True

    def is_spent(self, address: str, now: float) -> bool:
        """Whether the next attempt would be one too many."""
        return network_of(address) in self._buckets and self._bucket(address, now).tokens < 1

    def is_news(self, address: str, now: float) -> bool:
        """Whether nobody has asked this since the address had a token: so that a flood is one line of the log."""
        bucket = self._bucket(address, now)
        was_told, bucket.is_told = bucket.is_told, True
        return not was_told

    def _bucket(self, address: str, now: float) -> _Bucket:
        name = network_of(address)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(self._burst, now)
            if len(self._buckets) > MOST_ADDRESSES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        bucket.tokens = min(bucket.tokens + max(now - bucket.at, 0.0) * self._rate, self._burst)
        bucket.at = now
        return bucket


def network_of(address: str) -> str:
    """What is counted as one: an address of IPv4, a network of IPv6; anything else as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _NETWORK), strict=False))
    return str(parsed)


def address_of(peer: str) -> str:
    """The address in what gRPC calls a peer, such as "ipv4:192.0.2.7:5000" or "ipv6:[2001:db8::7]:5000" (also with %5B)."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    return rest.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]")
