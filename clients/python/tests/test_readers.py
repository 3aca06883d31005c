"""Both readers together with a real worker, real events and real Redis."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
import unittest
from typing import Any

import redis
import redis.asyncio

from unstale_reader import AsyncReader, Reader

from stage import HOUR, READER_URL, SOON, Async, Held, Source, Stage, Sync, admin, applied, wait_until

LEASE = "unstale:lease/{product:7}"


async def fail() -> Any:
    raise ZeroDivisionError("no database")


async def new() -> bytes:
    return b"new"


class Scenarios(Stage):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        admin.flushall()

    async def test_two_hundred_readers_of_one_invalidated_key_cost_one_load(self) -> None:
        admin.set("product:7", "old")
        await applied("product.changed", '{"id":7}')
        reader, source = self.reader(), Source()
        values = await asyncio.gather(*(reader.get_or_load("product:7", source, HOUR, ["products"]) for _ in range(200)))
        self.assertEqual(set(values), {b"new"})
        self.assertEqual(source.loads, 1)

    async def test_a_thousand_keys_of_an_invalidated_tag_cost_a_thousand_loads_at_most(self) -> None:
        reader, old, source = self.reader(lease=60, wait=60), Source(b"old"), Source()
        keys = [f"product:{n}" for n in range(1000)]

        async def read_all(load: Source) -> set[bytes]:
            return set(await asyncio.gather(*(reader.get_or_load(key, load, HOUR, ["products"]) for _ in range(3) for key in keys)))

        await read_all(old)
        self.assertEqual(old.loads, 1000)
        await applied("products.imported")
        await read_all(source)
        await wait_until("the tag is drained", lambda: not admin.exists("unstale:drains"))
        self.assertEqual(await read_all(source), {b"new"})
        self.assertLessEqual(source.loads, 1000)

    async def test_whatever_event_reaches_the_key_during_the_load_voids_it(self) -> None:
        reader = self.reader(lease=60)
        cases = [
            ("product.changed", '{"id":7}', None),
            ("products.imported", "{}", None),
            ("product.priced", '{"id":7,"price":"5"}', b'"5"'),
            ("product.expiring", '{"id":7}', None),
        ]
        for big in (False, True):
            for tags in (["products"], lambda _: ["products"]):
                for event, data, left in cases:
                    with self.subTest(event=event, big=big, tags=tags):
                        admin.delete("product:7", "cache_tag:products")
                        if big:
                            admin.sadd("cache_tag:products", *(f"member:{n}" for n in range(600)))
                        held = Held()
                        read = asyncio.create_task(reader.get_or_load("product:7", held, HOUR, tags))
                        await asyncio.wait_for(held.begun.wait(), SOON)
                        await applied(event, data)
                        held.end.set()
                        self.assertEqual(await read, b"old")
                        self.assertEqual(self.told(), ["void"])
                        self.assertEqual(admin.get("product:7"), left)
                        self.assertFalse(admin.exists(LEASE))

    async def test_a_drain_voids_the_load_of_a_member_whose_new_value_has_other_tags(self) -> None:
        admin.sadd("cache_tag:products", "product:7", *(f"member:{n}" for n in range(600)))
        admin.set("product:7", "older", ex=30)
        reader, held = self.reader(lease=60, stale=60), Held()
        read = asyncio.create_task(reader.get_or_load("product:7", held, HOUR, ["toys"]))
        await asyncio.wait_for(held.begun.wait(), SOON)
        await applied("products.imported")
        await wait_until("the tag is drained", lambda: not admin.exists("product:7"))
        held.end.set()
        await read
        self.assertEqual(self.told(), ["void"])
        self.assertFalse(admin.exists("product:7"))

    async def test_a_holder_that_was_killed_blocks_the_others_no_longer_than_its_lease(self) -> None:
        lease = 1.0
        program = (
            "import redis, sys, time, unstale_reader\n"
            "def load():\n    print('loading', flush=True)\n    time.sleep(600)\n"
            "unstale_reader.Reader(redis.Redis.from_url(sys.argv[1]), lease=float(sys.argv[2])).get_or_load('product:7', load, 60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", program, READER_URL, str(lease)], stdout=subprocess.PIPE)
        try:
            assert holder.stdout
            self.assertEqual(holder.stdout.readline(), b"loading\n")
        finally:
            holder.kill()
            holder.communicate()
        self.assertTrue(admin.exists(LEASE))
        reader, source = self.reader(lease=lease), Source()
        start = time.monotonic()
        values = await asyncio.gather(*(reader.get_or_load("product:7", source, HOUR) for _ in range(50)))
        self.assertEqual(set(values), {b"new"})
        self.assertEqual(source.loads, 1)
        self.assertLess(time.monotonic() - start, lease + SOON)

    async def test_a_load_that_outlasts_its_lease_fills_nothing_and_blocks_nobody(self) -> None:
        reader, held = self.reader(lease=0.2), Held()
        slow = asyncio.create_task(reader.get_or_load("product:7", held, HOUR))
        await asyncio.wait_for(held.begun.wait(), SOON)
        self.assertEqual(await reader.get_or_load("product:7", new, HOUR), b"new")
        held.end.set()
        self.assertEqual(await slow, b"old")
        self.assertEqual(self.told(), ["filled", "void"])
        self.assertEqual(admin.get("product:7"), b"new")

    async def test_who_waits_too_long_loads_and_caches_nothing(self) -> None:
        admin.set(LEASE, "another's", ex=60)
        reader = self.reader(lease=0.1, wait=0.1)
        self.assertEqual(await reader.get_or_load("product:7", new, HOUR), b"new")
        self.assertEqual(self.told(), ["crowded"])
        self.assertFalse(admin.exists("product:7"))
        self.assertEqual(admin.get(LEASE), b"another's")

    async def test_a_loader_that_fails_or_finds_nothing_gives_the_lease_back(self) -> None:
        reader = self.reader()
        with self.assertRaises(ZeroDivisionError):
            await reader.get_or_load("product:7", fail, HOUR)
        self.assertFalse(admin.exists(LEASE))
        for read in (reader.get_or_load, reader.get_or_load_json):
            self.assertIsNone(await read("product:7", Source(None), HOUR))
            self.assertFalse(admin.exists(LEASE))
        self.assertEqual(self.told(), ["absent", "absent"])

    async def test_what_is_no_bytes_and_no_json_is_a_mistake_and_told_without_the_value(self) -> None:
        reader = self.reader()
        for read, value in ((reader.get_or_load, "s3cret"), (reader.get_or_load_json, {"s3cret"})):
            with self.assertRaises(TypeError) as raised:
                await read("product:7", Source(value), HOUR)
            self.assertNotIn("s3cret", str(raised.exception))
            self.assertFalse(admin.exists(LEASE))

    async def test_readers_that_know_of_no_lease_work_beside(self) -> None:
        reader, held = self.reader(), Held(b"a")
        first = asyncio.create_task(reader.get_or_load("product:7", held, HOUR))
        await asyncio.wait_for(held.begun.wait(), SOON)
        second = asyncio.create_task(reader.get_or_load("product:7", fail, HOUR))
        admin.set("product:7", "b", ex=3600)
        self.assertEqual(await second, b"b")
        held.end.set()
        self.assertEqual(await first, b"a")
        self.assertEqual(admin.get("product:7"), b"a")

    async def test_bytes_stand_at_the_plain_key_with_their_tags_and_ttls(self) -> None:
        reader = self.reader(key_prefix="shop:", tag_prefix="cache_tag:x:", jitter=0.5)
        value = b"\xff\x00\r\n"
        for n in range(40):
            self.assertEqual(await reader.get_or_load(f"k{n}", Source(value), HOUR, ["t", "u", "t"]), value)
            self.assertEqual(await reader.get_or_load(f"k{n}", fail, HOUR), value)
            self.assertEqual(admin.get(f"shop:k{n}"), value)
        lives = [admin.pttl(f"shop:k{n}") for n in range(40)]
        self.assertTrue(all(1_790_000 <= life <= 3_600_000 for life in lives), lives)
        self.assertGreater(max(lives) - min(lives), 60_000)
        for tag in ("t", "u"):
            self.assertEqual(admin.scard(f"cache_tag:x:{tag}"), 40)
            self.assertGreater(admin.pttl(f"cache_tag:x:{tag}"), 3_590_000)

    async def test_json_is_the_same_cached_or_not_and_names_its_tags(self) -> None:
        for client in ({}, {"decode_responses": True}):
            admin.delete("product:7", "cache_tag:category:toys")
            reader = self.reader(client=client)
            for _ in range(2):
                value = await reader.get_or_load_json(
                    "product:7", Source({"name": "Äpfel", "sizes": (1, 2), "category": "toys"}), HOUR, lambda p: [f"category:{p['category']}"]
                )
                self.assertEqual(value, {"name": "Äpfel", "sizes": [1, 2], "category": "toys"})
            self.assertEqual(admin.smembers("cache_tag:category:toys"), {b"product:7"})
            admin.set("product:7", b"\x80pickled")
            self.assertEqual(await reader.get_or_load_json("product:7", Source(1), HOUR), 1)
            self.assertEqual(admin.get("product:7"), b"\x80pickled")
            self.assertEqual(self.told(), ["filled", "hit", "unreadable"])

    async def test_a_value_near_its_end_is_loaded_by_one_and_served_to_the_others(self) -> None:
        reader = self.reader(stale=60)
        admin.set("product:7", "old", ex=3000)
        self.assertEqual(await reader.get_or_load("product:7", fail, HOUR), b"old")
        admin.set("product:7", "old", ex=30)
        held = Held(b"new")
        refresh = asyncio.create_task(reader.get_or_load("product:7", held, HOUR))
        await asyncio.wait_for(held.begun.wait(), SOON)
        others = await asyncio.gather(*(reader.get_or_load("product:7", fail, HOUR) for _ in range(20)))
        self.assertEqual(set(others), {b"old"})
        held.end.set()
        self.assertEqual(await refresh, b"new")
        self.assertEqual(admin.get("product:7"), b"new")
        admin.set("product:7", "old", ex=30)
        with self.assertLogs("unstale_reader"):
            self.assertEqual(await reader.get_or_load("product:7", fail, HOUR), b"old")
        self.assertEqual(self.told(), ["hit"] * 21 + ["filled", "kept"])

    async def test_without_redis_values_are_loaded_and_not_cached_and_nothing_is_told_of_them(self) -> None:
        silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers
        port = silent.getsockname()[1]
        for url in ("redis://127.0.0.1:1/0", f"redis://127.0.0.1:{port}/0"):
            reader = self.reader(url=url, client=self.kind.brief, timeout=0.3)
            with self.assertLogs("unstale_reader", logging.WARNING) as logs:
                self.assertEqual(await reader.get_or_load("product:7", Source(b"s3cret"), HOUR, ["t"]), b"s3cret")
            self.assertNotIn("s3cret", "".join(logs.output))
        silent.close()
        # A key, then a tag, that are something else: Redis refuses.
        admin.sadd("product:7", "a set")
        admin.set("cache_tag:t", "text")
        reader = self.reader()
        for key in ("product:7", "product:8"):
            with self.assertLogs("unstale_reader", logging.WARNING) as logs:
                self.assertEqual(await reader.get_or_load(key, Source(b"s3cret"), HOUR, ["t"]), b"s3cret")
            self.assertNotIn("s3cret", "".join(logs.output))
        self.assertFalse(admin.exists("product:8", "unstale:lease/{product:8}"))
        self.assertEqual(self.told(), ["away"] * 4)

    async def test_a_script_that_redis_has_forgotten_is_sent_again(self) -> None:
        reader = self.reader()
        for n in range(3):
            admin.script_flush()
            await reader.get_or_load(f"product:{n}", new, HOUR, ["t"])
        self.assertEqual(self.told(), ["filled"] * 3)


class TestReader(Scenarios):
    kind = Sync()


class TestAsyncReader(Scenarios):
    kind = Async()

    async def test_a_read_that_is_cancelled_gives_the_lease_back(self) -> None:
        reader, held = self.reader(), Held()
        read = asyncio.create_task(reader.get_or_load("product:7", held, HOUR))
        await asyncio.wait_for(held.begun.wait(), SOON)
        self.assertTrue(admin.exists(LEASE))
        read.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await read
        self.assertFalse(admin.exists(LEASE))


class TestOptions(unittest.TestCase):
    def test_what_cannot_be_is_refused(self) -> None:
        for wrong in ({"lease": 361}, {"lease": 0}, {"wait": -1}, {"wait": 4.9}, {"lease": 20, "wait": 10}, {"jitter": 2}):
            with self.assertRaises(ValueError):
                Reader(redis.Redis(), **wrong)
            with self.assertRaises(ValueError):
                AsyncReader(redis.asyncio.Redis(), **wrong)
        with self.assertRaises(ValueError):
            Reader(redis.Redis()).get_or_load("k", lambda: b"", ttl=0)
        with self.assertRaises(ValueError):
            Reader(redis.Redis()).get_or_load("", lambda: b"", ttl=1)


del Scenarios, Stage  # they are no tests by themselves
