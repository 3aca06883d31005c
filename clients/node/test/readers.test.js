// The reader together with a real worker, real events and real Redis.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { once } from "node:events";
import { after, beforeEach, test } from "node:test";

import { Redis } from "ioredis";

import { Reader } from "../index.js";
import { HOUR, READER_URL, admin, applied, closeAll, fail, held, opened, reader as on, source, text, waitUntil } from "./stage.js";

const LEASE = "unstale:lease/{product:7}";
const redis = admin();
const drained = async () => (await redis.exists("unstale:drains")) === 0;

beforeEach(() => redis.flushall());
after(closeAll);

test("two hundred readers of one invalidated key cost one load", async () => {
  await redis.set("product:7", "old");
  await applied(redis, "product.changed", '{"id":7}');
  const [{ reader }, load] = [on(), source()];
  const how = { ...HOUR, tags: ["products"] };
  const values = await Promise.all(Array.from({ length: 200 }, () => reader.getOrLoad("product:7", load, how)));
  assert.deepEqual(new Set(values.map(text)), new Set(["new"]));
  assert.equal(load.loads, 1);
});

test("a thousand keys of an invalidated tag cost a thousand loads at most", async () => {
  const { reader } = on({ leaseMs: 60_000, waitMs: 60_000, timeoutMs: 20_000 });
  const keys = Array.from({ length: 3_000 }, (_, n) => `product:${n % 1_000}`);
  const readAll = async (load) =>
    new Set((await Promise.all(keys.map((key) => reader.getOrLoad(key, load, { ...HOUR, tags: ["products"] })))).map(text));
  const [old, fresh] = [source("old"), source("new")];
  await readAll(old);
  assert.equal(old.loads, 1_000);
  await applied(redis, "products.imported");
  await readAll(fresh);
  await waitUntil("the tag is drained", drained);
  assert.deepEqual(await readAll(fresh), new Set(["new"]));
  assert.ok(fresh.loads <= 1_000, `${fresh.loads} loads`);
});

for (const [event, data, left] of [
  ["product.changed", '{"id":7}', null],
  ["products.imported", "{}", null],
  ["product.priced", '{"id":7,"price":"5"}', '"5"'],
  ["product.expiring", '{"id":7}', null],
]) {
  test(`${event} during the load voids it`, async () => {
    const { reader, told } = on({ leaseMs: 60_000 });
    for (const big of [false, true]) {
      for (const tags of [["products"], () => ["products"]]) {
        await redis.del("product:7", "cache_tag:products");
        if (big) await redis.sadd("cache_tag:products", ...Array.from({ length: 600 }, (_, n) => `member:${n}`));
        const load = held();
        const read = reader.getOrLoad("product:7", load, { ...HOUR, tags });
        await load.begun;
        await applied(redis, event, data);
        load.end();
        assert.equal(text(await read), "old");
        assert.deepEqual(told(), ["void"]);
        assert.equal(await redis.get("product:7"), left);
        assert.equal(await redis.exists(LEASE), 0);
      }
    }
  });
}

test("a drain voids the load of a member whose new value has other tags", async () => {
  await redis.sadd("cache_tag:products", "product:7", ...Array.from({ length: 600 }, (_, n) => `member:${n}`));
  await redis.set("product:7", "older", "EX", 30);
  const [{ reader, told }, load] = [on({ leaseMs: 60_000, staleMs: 60_000 }), held()];
  const read = reader.getOrLoad("product:7", load, { ...HOUR, tags: ["toys"] });
  await load.begun;
  await applied(redis, "products.imported");
  await waitUntil("the tag is drained", async () => !(await redis.exists("product:7")));
  load.end();
  await read;
  assert.deepEqual(told(), ["void"]);
  assert.equal(await redis.exists("product:7"), 0);
});

test("a holder that was killed blocks the others no longer than its lease", async () => {
  const program = `
    import { Redis } from "ioredis";
    import { Reader } from "./index.js";
    const load = () => new Promise(() => { console.log("loading"); setInterval(() => {}, 1000); });
    await new Reader(new Redis(process.argv[1]), { leaseMs: 1000 }).getOrLoad("product:7", load, { ttlMs: 60000 });`;
  const holder = spawn(process.execPath, ["--input-type=module", "-e", program, READER_URL], { cwd: new URL("..", import.meta.url) });
  await once(holder.stdout, "data");
  holder.kill("SIGKILL");
  await once(holder, "exit");
  assert.equal(await redis.exists(LEASE), 1);
  const [{ reader }, load] = [on({ leaseMs: 1_000 }), source()];
  const values = await Promise.all(Array.from({ length: 50 }, () => reader.getOrLoad("product:7", load, HOUR)));
  assert.deepEqual(new Set(values.map(text)), new Set(["new"]));
  assert.equal(load.loads, 1);
});

test("a load that outlasts its lease fills nothing and blocks nobody", async () => {
  const [{ reader, told }, load] = [on({ leaseMs: 200 }), held()];
  const slow = reader.getOrLoad("product:7", load, HOUR);
  await load.begun;
  assert.equal(text(await reader.getOrLoad("product:7", source(), HOUR)), "new");
  load.end();
  assert.equal(text(await slow), "old");
  assert.deepEqual(told(), ["filled", "void"]);
  assert.equal(await redis.get("product:7"), "new");
});

test("who waits too long loads and caches nothing", async () => {
  await redis.set(LEASE, "another's", "EX", 60);
  const { reader, told } = on({ leaseMs: 100, waitMs: 100 });
  assert.equal(text(await reader.getOrLoad("product:7", source(), HOUR)), "new");
  assert.deepEqual(told(), ["crowded"]);
  assert.equal(await redis.exists("product:7"), 0);
  assert.equal(await redis.get(LEASE), "another's");
});

test("a loader that fails or finds nothing gives the lease back", async () => {
  const { reader, told } = on();
  await assert.rejects(reader.getOrLoad("product:7", fail, HOUR), /no database/);
  assert.equal(await redis.exists(LEASE), 0);
  assert.equal(await reader.getOrLoad("product:7", source(null), HOUR), null);
  assert.equal(await reader.getOrLoadJson("product:7", async () => undefined, HOUR), null);
  assert.equal(await redis.exists(LEASE), 0);
  assert.deepEqual(told(), ["absent", "absent"]);
});

test("what is no bytes and no JSON is a mistake and told without the value", async () => {
  const { reader } = on();
  await assert.rejects(reader.getOrLoad("product:7", source({ password: "s3cret" }), HOUR), (error) => !error.message.includes("s3cret"));
  await assert.rejects(reader.getOrLoadJson("product:7", source(() => "s3cret"), HOUR), (error) => !error.message.includes("s3cret"));
  await assert.rejects(reader.getOrLoad("product:7", source(), { ...HOUR, tags: "one text" }), TypeError);
  assert.equal(await redis.exists(LEASE), 0);
});

test("readers that know of no lease work beside", async () => {
  const [{ reader }, load] = [on(), held("a")];
  const first = reader.getOrLoad("product:7", load, HOUR);
  await load.begun;
  const second = reader.getOrLoad("product:7", fail, HOUR);
  await redis.setex("product:7", 3600, "b");
  assert.equal(text(await second), "b");
  load.end();
  assert.equal(text(await first), "a");
  assert.equal(await redis.get("product:7"), "a");
});

test("bytes stand at the plain key with their tags and TTLs", async () => {
  const { reader } = on({ keyPrefix: "shop:", tagPrefix: "cache_tag:x:", jitter: 0.5 });
  const value = Buffer.from([0xff, 0, 13, 10]);
  const lives = [];
  for (let n = 0; n < 40; n++) {
    assert.deepEqual(await reader.getOrLoad(`k${n}`, source(value), { ...HOUR, tags: ["t", "u", "t"] }), value);
    assert.deepEqual(await reader.getOrLoad(`k${n}`, fail, HOUR), value);
    assert.deepEqual(await redis.getBuffer(`shop:k${n}`), value);
    lives.push(await redis.pttl(`shop:k${n}`));
  }
  assert.ok(lives.every((life) => life >= 1_790_000 && life <= 3_600_000), `${lives}`);
  assert.ok(Math.max(...lives) - Math.min(...lives) > 60_000, `${lives}`);
  for (const tag of ["t", "u"]) {
    assert.equal(await redis.scard(`cache_tag:x:${tag}`), 40);
    assert.ok((await redis.pttl(`cache_tag:x:${tag}`)) > 3_590_000);
  }
});

test("JSON is the same cached or not and names its tags", async () => {
  const { reader, told } = on();
  const load = source({ name: "Äpfel", at: new Date(0), category: "toys" });
  for (let n = 0; n < 2; n++) {
    const value = await reader.getOrLoadJson("product:7", load, { ...HOUR, tags: (product) => [`category:${product.category}`] });
    assert.deepEqual(value, { name: "Äpfel", at: "1970-01-01T00:00:00.000Z", category: "toys" });
  }
  assert.deepEqual(await redis.smembers("cache_tag:category:toys"), ["product:7"]);
  await redis.set("product:7", "pickled");
  assert.equal(await reader.getOrLoadJson("product:7", source(1), HOUR), 1);
  assert.equal(await redis.get("product:7"), "pickled");
  assert.deepEqual(told(), ["filled", "hit", "unreadable"]);
});

test("a value near its end is loaded by one and served to the others", async () => {
  const { reader, told } = on({ staleMs: 60_000 });
  await redis.setex("product:7", 3000, "old");
  assert.equal(text(await reader.getOrLoad("product:7", fail, HOUR)), "old");
  await redis.setex("product:7", 30, "old");
  const load = held("new");
  const refresh = reader.getOrLoad("product:7", load, HOUR);
  await load.begun;
  const others = await Promise.all(Array.from({ length: 20 }, () => reader.getOrLoad("product:7", fail, HOUR)));
  assert.deepEqual(new Set(others.map(text)), new Set(["old"]));
  load.end();
  assert.equal(text(await refresh), "new");
  assert.equal(await redis.get("product:7"), "new");
  await redis.setex("product:7", 30, "old");
  assert.equal(text(await reader.getOrLoad("product:7", fail, HOUR)), "old");
  assert.deepEqual(told(), [...Array(21).fill("hit"), "filled", "kept"]);
});

test("without Redis values are loaded and not cached", async () => {
  // Nobody there; somebody who never answers; a key, then a tag, that are something else.
  const silent = createServer(() => {}).listen(0, "127.0.0.1");
  await once(silent, "listening");
  for (const url of ["redis://127.0.0.1:1", `redis://127.0.0.1:${silent.address().port}`]) {
    const { reader, told } = on({ timeoutMs: 300 }, opened(new Redis(url)));
    assert.equal(text(await reader.getOrLoad("product:7", source(), { ...HOUR, tags: ["t"] })), "new");
    assert.deepEqual(told(), ["away"]);
  }
  silent.close();
  await redis.sadd("product:7", "a set");
  await redis.set("cache_tag:t", "text");
  const { reader, told } = on();
  for (const key of ["product:7", "product:8"]) {
    assert.equal(text(await reader.getOrLoad(key, source(), { ...HOUR, tags: ["t"] })), "new");
  }
  assert.deepEqual(told(), ["away", "away"]);
  assert.equal(await redis.exists("product:8", "unstale:lease/{product:8}"), 0);
});

test("a script that Redis has forgotten is sent again", async () => {
  const { reader, told } = on();
  for (let n = 0; n < 3; n++) {
    await redis.script("FLUSH");
    await reader.getOrLoad(`product:${n}`, source(), { ...HOUR, tags: ["t"] });
  }
  assert.deepEqual(told(), ["filled", "filled", "filled"]);
});

test("what cannot be is refused", async () => {
  const client = opened(new Redis(READER_URL));
  for (const wrong of [{ leaseMs: 360_001 }, { leaseMs: 0 }, { waitMs: -1 }, { waitMs: 4_999 }, { leaseMs: 20_000, waitMs: 10_000 }, { jitter: 2 }, { ttl: 5 }]) {
    assert.throws(() => new Reader(client, wrong));
  }
  assert.throws(() => new Reader(opened(new Redis(READER_URL, { keyPrefix: "shop:" }))), /keyPrefix/);
  const { reader } = on({}, client);
  await assert.rejects(reader.getOrLoad("product:7", source(), { ttlMs: 0 }), RangeError);
  await assert.rejects(reader.getOrLoad("product:7", source()), /third argument.*ttlMs/);
  await assert.rejects(reader.getOrLoad("product:7", source(), null), /third argument.*ttlMs/);
  await assert.rejects(reader.getOrLoad("product:7", source(), {}), /ttlMs/);
  await assert.rejects(reader.getOrLoad("product:7", undefined, { ttlMs: 1 }), /load/);
  for (const key of ["", undefined, 7]) await assert.rejects(reader.getOrLoadJson(key, source(), { ttlMs: 1 }), /key: a text/);
});
