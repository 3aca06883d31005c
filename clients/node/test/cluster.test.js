// The reader on a real Redis Cluster, beside a real worker: the fill in its three steps, and in one where a hash tag puts everything into one slot.
import assert from "node:assert/strict";
import { after, beforeEach, test } from "node:test";

import { HOUR, applied, closeAll, cluster, held, reader as on, source, text, waitUntil } from "./stage.js";

/** Forms of keys with a tag: in other slots, in one slot, with a hash tag of the key's own. */
const KEYS = [
  [(n) => `product:${n}`, "products"],
  [(n) => `{shop}:product:${n}`, "{shop}:products"],
  [(n) => `product:{${n}}`, "products"],
];
const redis = cluster();
const side = (kind, name) => (name.includes("}") ? `unstale:${kind}:${name}` : `unstale:${kind}/{${name}}`);

beforeEach(async () => {
  await redis.ping();
  await Promise.all(redis.nodes("master").map((node) => node.flushall()));
});
after(closeAll);

test("a value is filled with its tags and read again", async () => {
  const { reader, told } = on({}, cluster());
  for (const [form, tag] of KEYS) {
    for (let n = 0; n < 20; n++) {
      const load = source("v");
      for (let read = 0; read < 2; read++) {
        assert.equal(text(await reader.getOrLoad(form(n), load, { ...HOUR, tags: [tag] })), "v");
      }
      assert.equal(load.loads, 1);
      assert.equal(await redis.sismember(`cache_tag:${tag}`, form(n)), 1);
      assert.equal(await redis.exists(side("lease", form(n))), 0);
    }
  }
  assert.deepEqual(told(), Array(60).fill(["filled", "hit"]).flat());
});

test("an event during the load voids it", async () => {
  const { reader, told } = on({ leaseMs: 60_000 }, cluster());
  for (const [form, tag] of KEYS) {
    const [key, generation] = [form(7), side("gen", `cache_tag:${tag}`)];
    for (const [event, left] of [
      ["product.changed", null],
      ["products.imported", null],
      ["product.priced", '"5"'],
    ]) {
      for (const tags of [[tag], () => [tag]]) {
        await redis.del(key);
        const [load, before] = [held(), await redis.get(generation)];
        const read = reader.getOrLoad(key, load, { ...HOUR, tags });
        await load.begun;
        await applied(redis, event, '{"id":7,"price":"5"}', "clustered");
        // In a cluster the marker may be ahead of other slots.
        if (event === "products.imported") await waitUntil("the tag is invalidated", async () => (await redis.get(generation)) !== before);
        else await waitUntil("the lease is void", async () => !(await redis.exists(side("lease", key))));
        load.end();
        assert.equal(text(await read), "old");
        assert.deepEqual(told(), ["void"]);
        assert.equal(await redis.get(key), left);
        assert.equal(await redis.exists(side("lease", key)), 0);
      }
    }
  }
});

test("two hundred readers of one key cost one load", async () => {
  const [{ reader }, load] = [on({}, cluster()), source()];
  const how = { ...HOUR, tags: ["products"] };
  const values = await Promise.all(Array.from({ length: 200 }, () => reader.getOrLoad("product:7", load, how)));
  assert.deepEqual(new Set(values.map(text)), new Set(["new"]));
  assert.equal(load.loads, 1);
});

test("a key without a side key in its slot is loaded and not cached", async () => {
  const { reader, told } = on({}, cluster());
  assert.equal(text(await reader.getOrLoad("a}b", source("v"), HOUR)), "v");
  assert.equal(text(await reader.getOrLoad("k", source("v"), { ...HOUR, tags: ["a}b"] })), "v");
  assert.deepEqual(told(), ["away", "away"]);
  for (const key of ["a}b", "k", side("lease", "k")]) assert.equal(await redis.exists(key), 0);
});
