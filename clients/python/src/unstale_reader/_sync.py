"""The reader over a client of redis-py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Optional, TypeVar, Union

from redis import Redis
from redis.client import NEVER_DECODE
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError, NoScriptError

from ._options import Options, Seconds, millis
from ._outcome import Outcome
from ._protocol import AWAY, BYTES, JSON, POOL_PAUSE_S, Call, Failed, Get, Lease, Load, Pause, Read, Tags, is_pool_empty, log
from ._scripts import RELEASE

T = TypeVar("T")

POOL_WAIT_S = 1


class Reader:
    """Reads through the cache. Without Redis, values are loaded and not cached.

    The prefixes are those of the worker: `UNSTALE_KEY_PREFIX` with the file's `key_prefix`, and
    `UNSTALE_TAG_PREFIX`. Durations are seconds.

    lease    maximum duration of a load; a slower one is not cached. At most 360
    wait     maximum time to wait for another reader's load before loading uncached. At least
             `lease`; default 10 s, or the lease
    stale    time before a value's end from which on one reader loads it again, while the others get
             it as it is
    jitter   maximum part of a TTL that chance takes off
    observe  called with the outcome of each read, for metrics

    The client limits the time for an answer: give it `socket_timeout`, `socket_connect_timeout` and
    few retries. Threads may share a reader as they share its client.
    """

    def __init__(
        self,
        client: Union[Redis, RedisCluster],
        *,
        key_prefix: str = "",
        tag_prefix: str = "cache_tag:",
        lease: Seconds = 5,
        wait: Optional[Seconds] = None,
        stale: Seconds = 0,
        jitter: float = 0.1,
        observe: Optional[Callable[[Outcome], None]] = None,
    ) -> None:
        self._client: Any = client
        self._away = False
        self._options = Options.of(
            key_prefix=key_prefix,
            tag_prefix=tag_prefix,
            cluster=isinstance(client, RedisCluster),
            lease=lease,
            wait=wait,
            stale=stale,
            jitter=jitter,
            observe=observe,
        )

    def get_or_load(
        self, key: str, load: Callable[[], Optional[bytes]], ttl: Seconds, tags: Tags[bytes] = ()
    ) -> Optional[bytes]:
        """Returns the bytes at `key`. Without any, calls `load` and caches its value under `tags`.

        The value is cached for at most `ttl`. `tags` are names, or a function of the loaded value.
        `None` from `load` is not cached. `load` is called once at most. Its exceptions are raised
        after the lease is released. Only this call gets a value that was invalidated while it
        loaded.
        """
        value: Optional[bytes] = self._read(Read(self._options, key, millis("ttl", ttl), tags, BYTES), load)
        return value

    def get_or_load_json(self, key: str, load: Callable[[], T], ttl: Seconds, tags: Tags[T] = ()) -> T:
        """Reads as `get_or_load` does, with values as JSON, even those that are not cached.

        A cached text that is not JSON counts as not cached, and stays.
        """
        value: T = self._read(Read(self._options, key, millis("ttl", ttl), tags, JSON), load)
        return value

    def _read(self, read: Read[Any], load: Callable[[], Any]) -> Any:
        steps, answer = read.steps(), None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, Load):
                    try:
                        answer = load()
                    except Exception as error:
                        answer = Failed(error)
                elif isinstance(step, Pause):
                    time.sleep(step.seconds)
                    answer = None
                else:
                    answer = self._ask(step)
        except StopIteration as end:
            result = end.value
        finally:
            if read.lease.armed:
                self._release(read.lease)
        if isinstance(result, Failed):
            raise result.error
        if self._options.observe:
            self._options.observe(result.outcome)
        return result.value

    def _release(self, lease: Lease) -> None:
        self._ask(Call(RELEASE, [lease.name], [lease.token]))

    def _ask(self, step: Union[Get, Call]) -> Any:
        try:
            answer = self._answer(step)
        except Exception as error:  # redis-py's cluster also raises bare exceptions
            # Never log the text, which may quote what was sent. Log once until Redis is back.
            log.log(logging.DEBUG if self._away else logging.WARNING, "the cache cannot be used: %s", type(error).__name__)
            self._away = True
            return AWAY
        self._away = False
        return answer

    def _answer(self, step: Union[Get, Call]) -> Any:
        if isinstance(step, Get):
            return self._execute("GET", step.key)
        try:
            return self._execute("EVALSHA", step.script.sha1, len(step.keys), *step.keys, *step.arguments)
        except NoScriptError:
            return self._execute("EVAL", step.script.source, len(step.keys), *step.keys, *step.arguments)

    def _execute(self, *command: Any) -> Any:
        patience = time.monotonic() + POOL_WAIT_S
        while True:
            try:
                return self._client.execute_command(*command, **{NEVER_DECODE: []})
            except ConnectionError as error:
                if not is_pool_empty(error) or time.monotonic() >= patience:
                    raise
                time.sleep(POOL_PAUSE_S)
