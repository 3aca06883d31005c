"""Reads through a Redis cache that unstale invalidates.

One reader loads while the others wait. A value that an event invalidates during its load is not
cached.

    cache = Reader(redis.Redis(), key_prefix="shop:")
    page = cache.get_or_load("page:7", lambda: render(7), ttl=3600, tags=["pages"])

The protocol is docs/reference/reader-scripts.md of unstale.
"""

from ._aio import AsyncReader
from ._outcome import Outcome
from ._sync import Reader

__all__ = ["AsyncReader", "Outcome", "Reader"]
