"""One read as a sequence of steps, without a socket or an event loop. Both readers share it.

`Read.steps` yields each step and receives its result: an answer of Redis, `AWAY`, a loaded value or
`Failed`. It returns the result of the read. The driver releases the lease if it is still `armed` at
the end, even after an error.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Optional, TypeVar, Union

from redis.exceptions import ConnectionError, MaxConnectionsError

from ._options import Options, hash_tag, side_key
from ._outcome import Outcome
from ._scripts import FILL, JOIN, READ, SEQUENCE, Script

T = TypeVar("T")
Tags = Union[Iterable[str], Callable[[T], Iterable[str]]]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.2

POOL_PAUSE_S = 0.01
"""Pause between two looks for a free connection. A client with an empty pool raises at once."""

log = logging.getLogger("unstale_reader")


@dataclass(frozen=True)
class Get:
    key: bytes


@dataclass(frozen=True)
class Call:
    script: Script
    keys: list[bytes]
    arguments: list[Union[bytes, int]]


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Load:
    """Call the loader."""


@dataclass(frozen=True)
class Failed:
    error: Exception


class Away:
    """Redis did not run the command, as far as is known."""


AWAY = Away()
LOAD = Load()
Step = Union[Get, Call, Pause, Load]


@dataclass
class Lease:
    name: bytes
    token: bytes = field(default_factory=lambda: secrets.token_hex(16).encode())
    since: bytes = b"0"
    armed: bool = False
    """Whether the lease may be ours, and so must be released."""


@dataclass(frozen=True)
class Result:
    outcome: Outcome
    value: Any


def is_pool_empty(error: Exception) -> bool:
    # redis-py 5 has no class for this error, except for a cluster's pool.
    return isinstance(error, MaxConnectionsError) or (isinstance(error, ConnectionError) and str(error) == "Too many connections")


class Codec:
    """Stores bytes unchanged."""

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"load gave {type(value).__name__}: bytes are expected, or use get_or_load_json")
        return bytes(value)

    def decode(self, data: bytes) -> Any:
        return data


class Json(Codec):
    def encode(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data)


BYTES, JSON = Codec(), Json()


class Read(Generic[T]):
    def __init__(self, options: Options, key: str, ttl_ms: int, tags: Tags[T], codec: Codec) -> None:
        self._options = options
        self._ttl_ms = ttl_ms
        self._tags = tags
        self._codec = codec
        if not key:
            raise ValueError("key: a text that is not empty")
        self._key = options.key_prefix + key.encode()
        self.lease = Lease(side_key(b"lease", self._key))

    def steps(self) -> Generator[Step, Any, Union[Result, Failed]]:
        found = yield from self._find()
        if isinstance(found, Result) and found.outcome in ("hit", "waited"):
            try:
                return Result(found.outcome, self._codec.decode(found.value))
            except (ValueError, RecursionError):
                found = Result("unreadable", None)
        loaded = yield LOAD
        if isinstance(loaded, Failed):
            return self._kept(found, loaded)
        if loaded is None:
            return Result("absent" if not isinstance(found, Result) else found.outcome, None)
        data = self._codec.encode(loaded)
        # The caller gets the same value, whether it was cached or not.
        value = self._codec.decode(data)
        if isinstance(found, Result):
            return Result(found.outcome, value)
        return Result((yield from self._fill(data, self._tags_of(value))), value)

    def _kept(self, found: Union[Result, Optional[bytes]], failed: Failed) -> Union[Result, Failed]:
        if not isinstance(found, bytes):
            return failed
        try:
            value = self._codec.decode(found)
        except (ValueError, RecursionError):
            return failed
        log.warning("an early load failed (%s): the cached value is kept", type(failed.error).__name__)
        return Result("kept", value)

    def _find(self) -> Generator[Step, Any, Union[Result, Optional[bytes]]]:
        """Finds the cached value, or takes the lease.

        Returns a result if there is nothing to fill. Otherwise the lease is ours, and the returned
        value, if any, is still valid for a while.
        """
        options, lease = self._options, self.lease
        if options.cluster and hash_tag(lease.name) != hash_tag(self._key):
            return Result("away", None)
        # The shortest way to a cached value. An early load needs the remaining lifetime, which the
        # script returns.
        if not options.stale_ms:
            value = yield Get(self._key)
            if value is AWAY:
                return Result("away", None)
            if value is not None:
                return Result("hit", value)
        keys = [self._key, lease.name] if options.cluster else [self._key, lease.name, SEQUENCE]
        deadline, pause_s, stale_ms = time.monotonic() + options.wait_s, FIRST_PAUSE_S, options.stale_ms
        found_as: Outcome = "hit"
        while True:
            lease.armed = True
            answer = yield Call(READ, keys, [lease.token, options.lease_ms, stale_ms])
            if answer is AWAY:
                return Result("away", None)
            if answer[0] == b"lease":
                return (yield from self._granted(answer))
            lease.armed = False
            if answer[0] == b"value":
                return Result(found_as, answer[1])
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return Result("crowded", None)
            yield Pause(min(left_s, pause_s * random.uniform(0.5, 1)))
            pause_s, stale_ms, found_as = min(pause_s * 2, LONGEST_PAUSE_S), 0, "waited"

    def _granted(self, answer: list[bytes]) -> Generator[Step, Any, Union[Result, Optional[bytes]]]:
        self.lease.since = answer[1]
        if self._options.cluster:
            # The sequence is in a slot of its own: read it after the grant and before the load.
            since = yield Get(SEQUENCE)
            if since is AWAY:
                return Result("away", None)
            self.lease.since = since or b"0"
        return answer[2] if len(answer) > 2 else None

    def _tags_of(self, value: Any) -> list[bytes]:
        tags = self._tags(value) if callable(self._tags) else self._tags
        if isinstance(tags, (str, bytes)):
            raise TypeError("tags: a list of them, not one text")
        return [self._options.tag_prefix + tag.encode() for tag in dict.fromkeys(tags)]

    def _fill(self, data: bytes, sets: list[bytes]) -> Generator[Step, Any, Outcome]:
        options, lease = self._options, self.lease
        keys = [self._key, lease.name]
        for tag_set in sets:
            generation = side_key(b"gen", tag_set)
            if not options.cluster or hash_tag(tag_set) == hash_tag(self._key) == hash_tag(generation):
                keys += [tag_set, generation]
            elif hash_tag(generation) != hash_tag(tag_set):
                return "away"
            else:
                # The value's time begins after the set's, by the rest of the lease at most.
                set_ms = self._ttl_ms + options.lease_ms
                joined = yield Call(JOIN, [tag_set, generation], [self._key, lease.since, b"PX", set_ms])
                if joined != 1:
                    return "void" if joined == 0 else "away"
        # This comes last: from here on every tag reaches the key, and so voids its lease.
        arguments: list[Union[bytes, int]] = [lease.token, lease.since, data, b"PX", options.drawn(self._ttl_ms), self._ttl_ms]
        filled = yield Call(FILL, keys, arguments)
        lease.armed = filled is AWAY
        return "filled" if filled == 1 else "void" if filled == 0 else "away"
