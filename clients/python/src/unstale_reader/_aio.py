"""The reader over an asyncio client of redis-py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Optional, TypeVar, Union

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.client import NEVER_DECODE
from redis.exceptions import ConnectionError, NoScriptError

from ._options import Options, Seconds, millis
from ._outcome import Outcome
from ._protocol import AWAY, BYTES, JSON, POOL_PAUSE_S, Call, Failed, Get, Lease, Load, Pause, Read, Tags, is_pool_empty, log
from ._scripts import RELEASE

T = TypeVar("T")

AT_ONCE = 32
"""Maximum number of commands of one reader in flight. Each takes a connection."""


class AsyncReader:
    """`Reader` for asyncio, with the same options and `timeout`.

    `timeout` is the maximum time for one answer of Redis. After it, Redis counts as away.
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
        timeout: Seconds = 1,
        observe: Optional[Callable[[Outcome], None]] = None,
    ) -> None:
        self._client: Any = client
        self._away = False
        self._timeout_s = millis("timeout", timeout) / 1000
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._first = asyncio.Lock()
        self._connected = not isinstance(client, RedisCluster)
        self._releases: set[asyncio.Task[None]] = set()
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

    async def get_or_load(
        self, key: str, load: Callable[[], Awaitable[Optional[bytes]]], ttl: Seconds, tags: Tags[bytes] = ()
    ) -> Optional[bytes]:
        """Returns the bytes at `key`, or loads and caches them. See `Reader.get_or_load`."""
        value: Optional[bytes] = await self._read(Read(self._options, key, millis("ttl", ttl), tags, BYTES), load)
        return value

    async def get_or_load_json(self, key: str, load: Callable[[], Awaitable[T]], ttl: Seconds, tags: Tags[T] = ()) -> T:
        """Reads as `get_or_load` does, with values as JSON. See `Reader.get_or_load_json`."""
        value: T = await self._read(Read(self._options, key, millis("ttl", ttl), tags, JSON), load)
        return value

    async def _read(self, read: Read[Any], load: Callable[[], Awaitable[Any]]) -> Any:
        steps, answer = read.steps(), None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, Load):
                    try:
                        answer = await load()
                    except Exception as error:
                        answer = Failed(error)
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    answer = None
                else:
                    answer = await self._ask(step)
        except StopIteration as end:
            result = end.value
        finally:
            if read.lease.armed:
                # The release has a task of its own, so that a second cancellation does not keep the
                # lease.
                task = asyncio.ensure_future(self._release(read.lease))
                self._releases.add(task)
                task.add_done_callback(self._releases.discard)
                await asyncio.shield(task)
        if isinstance(result, Failed):
            raise result.error
        if self._options.observe:
            self._options.observe(result.outcome)
        return result.value

    async def _release(self, lease: Lease) -> None:
        await self._ask(Call(RELEASE, [lease.name], [lease.token]))

    async def _ask(self, step: Union[Get, Call]) -> Any:
        try:
            answer = await self._answer(step)
        except Exception as error:  # redis-py's cluster also raises bare exceptions
            # Never log the text, which may quote what was sent. Log once until Redis is back.
            log.log(logging.DEBUG if self._away else logging.WARNING, "the cache cannot be used: %s", type(error).__name__)
            self._away = True
            return AWAY
        self._away = False
        return answer

    async def _answer(self, step: Union[Get, Call]) -> Any:
        if isinstance(step, Get):
            return await self._execute("GET", step.key)
        try:
            return await self._execute("EVALSHA", step.script.sha1, len(step.keys), *step.keys, *step.arguments)
        except NoScriptError:
            return await self._execute("EVAL", step.script.source, len(step.keys), *step.keys, *step.arguments)

    async def _execute(self, *command: Any) -> Any:
        return await asyncio.wait_for(self._execute_unbounded(*command), self._timeout_s)

    async def _execute_unbounded(self, *command: Any) -> Any:
        if not self._connected:
            # A cluster's client connects on first use; many first users at once make it drop their
            # connections.
            async with self._first:
                await self._client.initialize()
                self._connected = True
        async with self._turns:
            while True:
                try:
                    return await self._client.execute_command(*command, **{NEVER_DECODE: []})
                except ConnectionError as error:
                    if not is_pool_empty(error):
                        raise
                    await asyncio.sleep(POOL_PAUSE_S)
