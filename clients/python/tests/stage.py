"""What the tests stand on: the Redis, the broker and the worker that scripts/test-clients.sh started, and both readers behind one face."""

from __future__ import annotations

import asyncio
import os
import subprocess
import unittest
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from unstale_reader import AsyncReader, Reader

REDIS_URL = os.environ["UNSTALE_REDIS_URL"]
READER_URL = os.environ["READERS_TEST_URL"]
"""Redis as the user whose rights docs/reference/reader-scripts.md names."""
CLUSTER = [tuple(node.split(":")) for node in os.environ["READERS_TEST_CLUSTER"].split(",")]
HOUR = 3600
SOON = 30

admin = redis.Redis.from_url(REDIS_URL)
threads = ThreadPoolExecutor(256)

Load = Callable[[], Awaitable[Any]]


def publish(event: str, data: str, exchange: str) -> None:
    """Until the broker has confirmed it."""
    command = [os.environ["READERS_TEST_BINARY"], "publish", event, data]
    subprocess.run(command, check=True, capture_output=True, timeout=SOON, env={**os.environ, "UNSTALE_EXCHANGE": exchange})


async def applied(event: str, data: str = "{}", on: Any = admin, exchange: str = "events") -> None:
    """Publishes an event, and waits until the worker has applied it."""
    on.set("marker", "there")
    await asyncio.to_thread(publish, event, data, exchange)
    await wait_until(f"{event} is applied", lambda: not on.exists("marker"))


async def wait_until(what: str, holds: Callable[[], Any]) -> None:
    for _ in range(SOON * 100):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"after {SOON} s still not so: {what}")


class Threaded:
    """A `Reader` as if it were an `AsyncReader`: each call in a thread of its own."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def get_or_load(self, key: str, load: Load, ttl: float, tags: Any = ()) -> Any:
        return await self._call(self._reader.get_or_load, key, load, ttl, tags)

    async def get_or_load_json(self, key: str, load: Load, ttl: float, tags: Any = ()) -> Any:
        return await self._call(self._reader.get_or_load_json, key, load, ttl, tags)

    async def _call(self, call: Callable[..., Any], key: str, load: Load, ttl: float, tags: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            threads, lambda: call(key, lambda: asyncio.run_coroutine_threadsafe(load(), loop).result(SOON), ttl, tags)
        )


class Stage(unittest.IsolatedAsyncioTestCase):
    """Readers that are closed at the end of a test."""

    kind: Any
    """`Sync` or `Async`."""

    async def asyncSetUp(self) -> None:
        # Else asyncio watches each step, and is slow.
        asyncio.get_running_loop().set_debug(False)
        self.outcomes: list[str] = []
        self._clients: list[Any] = []

    async def asyncTearDown(self) -> None:
        for client in self._clients:
            closed = client.aclose() if hasattr(client, "aclose") else client.close()
            if closed is not None:
                await closed

    def reader(self, url: str = READER_URL, client: Any = None, **options: Any) -> Any:
        return self._over(self.kind.single(url, client or {}), options)

    def cluster(self, **options: Any) -> Any:
        return self._over(self.kind.cluster(), options)

    def _over(self, client: Any, options: Any) -> Any:
        self._clients.append(client)
        return self.kind.over(client, {"observe": self.outcomes.append, **options})

    def told(self) -> list[str]:
        told, self.outcomes[:] = list(self.outcomes), []
        return told


class Sync:
    """Readers over synchronous clients."""

    brief = {"socket_timeout": 0.3, "socket_connect_timeout": 0.3, "retry": Retry(NoBackoff(), 0)}

    def single(self, url: str, client: dict[str, Any]) -> Any:
        return redis.Redis.from_url(url, **(client or {"socket_timeout": SOON}))

    def cluster(self) -> Any:
        return redis.RedisCluster(startup_nodes=[redis.cluster.ClusterNode(host, int(port)) for host, port in CLUSTER])

    def over(self, client: Any, options: dict[str, Any]) -> Any:
        options.pop("timeout", None)
        return Threaded(Reader(client, **options))


class Async:
    """Readers over asyncio clients."""

    brief: dict[str, Any] = {}

    def single(self, url: str, client: dict[str, Any]) -> Any:
        return redis.asyncio.Redis.from_url(url, **client)

    def cluster(self) -> Any:
        nodes = [redis.asyncio.cluster.ClusterNode(host, int(port)) for host, port in CLUSTER]
        return redis.asyncio.RedisCluster(startup_nodes=nodes)

    def over(self, client: Any, options: dict[str, Any]) -> Any:
        # A crowd on a busy machine may wait for its connections.
        return AsyncReader(client, **{"timeout": SOON, **options})


class Source:
    """A source of values that counts its loads."""

    def __init__(self, value: Any = b"new") -> None:
        self.loads, self.value = 0, value

    async def __call__(self) -> Any:
        self.loads += 1
        await asyncio.sleep(0.02)
        return self.value


class Held:
    """A load that stands still until it is told to end."""

    def __init__(self, value: Any = b"old") -> None:
        self.begun, self.end, self.value = asyncio.Event(), asyncio.Event(), value

    async def __call__(self) -> Any:
        self.begun.set()
        await self.end.wait()
        return self.value
