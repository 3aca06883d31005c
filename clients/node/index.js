// Reads through a Redis cache that unstale invalidates: one reader loads. If an event arrives during the load, the loaded value is not cached.
// The protocol is docs/reference/reader-scripts.md of unstale.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { checked, drawn, hashTag, millis, sideKey } from "./options.js";
import { FILL, JOIN, READ, RELEASE, SEQUENCE } from "./scripts.js";

const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 200;

/** Redis did not run the command, as far as is known. */
const AWAY = Symbol("away");

const BYTES = {
  encode(value) {
    if (typeof value === "string") return Buffer.from(value);
    if (value instanceof Uint8Array) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    throw new TypeError(`load gave ${typeof value}: bytes or text are expected, or use getOrLoadJson`);
  },
  decode: (data) => data,
};
const JSON_TEXT = {
  encode(value) {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError(`load gave ${typeof value}, which JSON cannot hold`);
    return Buffer.from(text);
  },
  decode: (data) => JSON.parse(data.toString("utf8")),
};

/** One key's lease. An `armed` one may be ours, and so must be released. */
class Lease {
  token = randomBytes(16).toString("hex");
  since = "0";
  armed = false;
  constructor(name) {
    this.name = name;
  }
}

export class Reader {
  #client;
  #options;

  constructor(client, options = {}) {
    const prefix = client.options?.keyPrefix || client.options?.redisOptions?.keyPrefix;
    if (prefix) throw new TypeError("the client's keyPrefix renames the cache's own keys: use a client without, and the reader's keyPrefix");
    this.#client = client;
    this.#options = { ...checked(options), cluster: Boolean(client.isCluster) };
  }

  getOrLoad(key, load, how) {
    return this.#read(key, load, how, BYTES);
  }

  getOrLoadJson(key, load, how) {
    return this.#read(key, load, how, JSON_TEXT);
  }

  async #read(name, load, how, codec) {
    if (typeof name !== "string" || name === "") throw new TypeError("key: a text that is not empty");
    if (typeof load !== "function") throw new TypeError("load: a function that gives the value");
    if (how === null || typeof how !== "object") throw new TypeError("the third argument says how long the value is good, such as { ttlMs: 3_600_000 }");
    const { tags = [] } = how;
    const ttlMs = millis("ttlMs", how.ttlMs, 1);
    const key = this.#options.keyPrefix + name;
    const lease = new Lease(sideKey("lease", key));
    try {
      const [outcome, value] = await this.#steps(key, lease, load, ttlMs, tags, codec);
      this.#options.observe(outcome);
      return value;
    } finally {
      if (lease.armed) await this.#run(RELEASE, [lease.name], [lease.token]);
    }
  }

  async #steps(key, lease, load, ttlMs, tags, codec) {
    let [found, data] = await this.#find(key, lease);
    if (found === "hit" || found === "waited") {
      const value = decoded(codec, data);
      if (value !== undefined) return [found, value];
      found = "unreadable";
    }
    let loaded;
    try {
      loaded = await load();
    } catch (error) {
      const old = found === "lease" && data ? decoded(codec, data) : undefined;
      if (old === undefined) throw error;
      return ["kept", old];
    }
    if (loaded === null || loaded === undefined) return [found === "lease" ? "absent" : found, null];
    const encoded = codec.encode(loaded);
    // The caller gets the same value, whether it was cached or not.
    const value = codec.decode(encoded);
    if (found !== "lease") return [found, value];
    return [await this.#fill(key, lease, encoded, ttlMs, this.#setsOf(tags, value)), value];
  }

  /** Finds the cached value, or takes the lease, with the old value if that is still valid. */
  async #find(key, lease) {
    const { cluster, leaseMs, waitMs } = this.#options;
    let { staleMs } = this.#options;
    if (cluster && hashTag(lease.name) !== hashTag(key)) return ["away"];
    // The shortest way to a cached value. An early load needs the remaining lifetime, which the
    // script returns.
    if (staleMs === 0) {
      const value = await this.#ask(() => this.#client.getBuffer(key));
      if (value === AWAY) return ["away"];
      if (value !== null) return ["hit", value];
    }
    const keys = cluster ? [key, lease.name] : [key, lease.name, SEQUENCE];
    const deadline = performance.now() + waitMs;
    let pauseMs = FIRST_PAUSE_MS;
    let foundAs = "hit";
    for (;;) {
      lease.armed = true;
      const answer = await this.#run(READ, keys, [lease.token, leaseMs, staleMs]);
      if (answer === AWAY) return ["away"];
      const [word, second, third] = answer;
      if (word.equals(WORDS.lease)) return this.#granted(lease, second, third);
      lease.armed = false;
      if (word.equals(WORDS.value)) return [foundAs, second];
      const leftMs = deadline - performance.now();
      if (leftMs <= 0) return ["crowded"];
      await sleep(Math.min(leftMs, pauseMs * (0.5 + Math.random() / 2)));
      [pauseMs, staleMs, foundAs] = [Math.min(pauseMs * 2, LONGEST_PAUSE_MS), 0, "waited"];
    }
  }

  async #granted(lease, since, old) {
    lease.since = since;
    if (this.#options.cluster) {
      // The sequence is in a slot of its own: read it after the grant and before the load.
      const sequence = await this.#ask(() => this.#client.getBuffer(SEQUENCE));
      if (sequence === AWAY) return ["away"];
      lease.since = sequence ?? "0";
    }
    return ["lease", old];
  }

  #setsOf(tags, value) {
    const names = typeof tags === "function" ? tags(value) : tags;
    if (typeof names === "string") throw new TypeError("tags: a list of them, not one text");
    return [...new Set(names)].map((tag) => this.#options.tagPrefix + tag);
  }

  async #fill(key, lease, data, ttlMs, sets) {
    const { cluster, jitter, leaseMs } = this.#options;
    const keys = [key, lease.name];
    for (const set of sets) {
      const generation = sideKey("gen", set);
      if (!cluster || (hashTag(set) === hashTag(key) && hashTag(generation) === hashTag(key))) {
        keys.push(set, generation);
      } else if (hashTag(generation) !== hashTag(set)) {
        return "away";
      } else {
        // The value's time begins after the set's, by the rest of the lease at most.
        const joined = await this.#run(JOIN, [set, generation], [key, lease.since, "PX", ttlMs + leaseMs]);
        if (joined !== 1) return joined === 0 ? "void" : "away";
      }
    }
    // This comes last: from here on every tag reaches the key, and so voids its lease.
    const filled = await this.#run(FILL, keys, [lease.token, lease.since, data, "PX", drawn(ttlMs, jitter), ttlMs]);
    lease.armed = filled === AWAY;
    return filled === 1 ? "filled" : filled === 0 ? "void" : "away";
  }

  /** Returns a script's answer. Sends the source if this server does not know the SHA-1 yet. */
  #run(script, keys, args) {
    return this.#ask(async () => {
      try {
        return await this.#client.evalshaBuffer(script.sha1, keys.length, ...keys, ...args);
      } catch (error) {
        if (!String(error?.message).startsWith("NOSCRIPT")) throw error;
        return await this.#client.evalBuffer(script.source, keys.length, ...keys, ...args);
      }
    });
  }

  /** Returns an answer within its time. Errors are dropped, since they may quote what was sent. */
  async #ask(send) {
    const done = new AbortController();
    const late = sleep(this.#options.timeoutMs, AWAY, { signal: done.signal, ref: true }).catch(() => AWAY);
    try {
      return await Promise.race([send().catch(() => AWAY), late]);
    } finally {
      done.abort();
    }
  }
}

const WORDS = { lease: Buffer.from("lease"), value: Buffer.from("value") };

/** Returns the value, or `undefined` if the data is something else. */
function decoded(codec, data) {
  try {
    return codec.decode(data);
  } catch {
    return undefined;
  }
}
