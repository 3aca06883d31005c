"""Checked options of a reader, and the names of its keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Optional, Union

from ._outcome import Outcome

Seconds = Union[float, int, timedelta]

LONGEST_LEASE_MS = 360_000
"""Maximum duration of a lease. Tags remember their invalidations for ten times as long."""

DEFAULT_WAIT_MS = 10_000
"""Default maximum time to wait for another load. It is raised to a longer lease."""

LONGEST_TTL_MS = 2**62


@dataclass(frozen=True)
class Options:
    key_prefix: bytes
    tag_prefix: bytes
    cluster: bool
    lease_ms: int
    wait_s: float
    stale_ms: int
    jitter: float
    observe: Optional[Callable[[Outcome], None]]

    @classmethod
    def of(
        cls,
        *,
        key_prefix: str,
        tag_prefix: str,
        cluster: bool,
        lease: Seconds,
        wait: Optional[Seconds],
        stale: Seconds,
        jitter: float,
        observe: Optional[Callable[[Outcome], None]],
    ) -> Options:
        lease_ms = millis("lease", lease)
        if lease_ms > LONGEST_LEASE_MS:
            raise ValueError(f"lease: at most {LONGEST_LEASE_MS // 1000} seconds")
        wait_ms = max(DEFAULT_WAIT_MS, lease_ms) if wait is None else millis("wait", wait, least=0)
        if wait_ms < lease_ms:
            raise ValueError(f"wait: at least the lease ({lease_ms / 1000:g} s), or all waiting readers load at once after the holder died")
        if not 0 <= jitter <= 1:
            raise ValueError("jitter: from 0 to 1")
        return cls(
            key_prefix=key_prefix.encode(),
            tag_prefix=tag_prefix.encode(),
            cluster=cluster,
            lease_ms=lease_ms,
            wait_s=wait_ms / 1000,
            stale_ms=millis("stale", stale, least=0),
            jitter=jitter,
            observe=observe,
        )

    def drawn(self, ttl_ms: int) -> int:
        """Returns a TTL with jitter, so that keys filled together do not all expire together."""
        return max(1, ttl_ms - int(ttl_ms * self.jitter * random.random()))


def millis(name: str, duration: Seconds, least: int = 1) -> int:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not seconds >= 0 or seconds * 1000 > LONGEST_TTL_MS:
        raise ValueError(f"{name}: a number of seconds, or a timedelta, that is not negative")
    whole = int(seconds * 1000)
    if whole < least:
        raise ValueError(f"{name}: at least {least} ms")
    return whole


def side_key(kind: bytes, key: bytes) -> bytes:
    """Returns the side key of a key, in the same slot of a Redis Cluster.

    A key with a `}` and no hash tag has no side key in its slot.
    """
    return b"unstale:" + kind + (b":" + key if b"}" in key else b"/{" + key + b"}")


def hash_tag(key: bytes) -> bytes:
    """Returns the part of a key that decides the slot."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed and tag else key
