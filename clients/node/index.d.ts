import type { Cluster, Redis } from "ioredis";

/**
 * Outcome of a read.
 *
 * - `hit`: cached
 * - `waited`: loaded by another reader in the meantime
 * - `filled`: loaded and cached
 * - `void`: loaded, not cached, since it was invalidated or the load outlasted its lease
 * - `absent`: the loader returned null
 * - `crowded`: loaded, not cached, since another reader's load did not end in time
 * - `away`: loaded, not cached, since Redis is away or refuses
 * - `unreadable`: loaded, not cached, since the key holds something else
 * - `kept`: an early load failed, and the cached value is still valid
 */
export type Outcome = "hit" | "waited" | "filled" | "void" | "absent" | "crowded" | "away" | "unreadable" | "kept";

/** Options of a reader. The prefixes are those of the worker. */
export interface Options {
  /** Prefix of keys, but not of tags: `UNSTALE_KEY_PREFIX`, then the file's `key_prefix`. */
  keyPrefix?: string;
  /** Prefix of tags' sets: `UNSTALE_TAG_PREFIX`; default `cache_tag:`. */
  tagPrefix?: string;
  /** Maximum duration of a load; a slower one is not cached. Default 5,000, at most 360,000. */
  leaseMs?: number;
  /**
   * Maximum time to wait for another reader's load before loading uncached. At least `leaseMs`;
   * default 10,000, or `leaseMs`.
   */
  waitMs?: number;
  /**
   * Time before a value's end from which on one reader loads it again, while the others get it as
   * it is. Default 0.
   */
  staleMs?: number;
  /** Maximum part of a TTL that chance takes off. Default 0.1. */
  jitter?: number;
  /** Maximum time for one answer of Redis. After it, Redis counts as away. Default 1,000. */
  timeoutMs?: number;
  /** Called with the outcome of each read, for metrics. */
  observe?: (outcome: Outcome) => void;
}

export interface How<T> {
  /** Maximum time for which the value is cached. */
  ttlMs: number;
  /** Names, or a function of the loaded value. */
  tags?: Iterable<string> | ((value: T) => Iterable<string>);
}

/** Reads through the cache. Without Redis, values are loaded and not cached. */
export class Reader {
  /** @throws if an option is wrong, or the client has a `keyPrefix`: the reader has its own. */
  constructor(client: Redis | Cluster, options?: Options);

  /**
   * Returns the bytes at `key`. Without any, calls `load` and caches its value, unless that is null.
   *
   * `load` is called once at most. Its errors are thrown after the lease is released. Only this
   * call gets a value that was invalidated while it loaded.
   */
  getOrLoad(
    key: string,
    load: () => Promise<Uint8Array | string | null | undefined> | Uint8Array | string | null | undefined,
    how: How<Buffer>,
  ): Promise<Buffer | null>;

  /**
   * Reads as `getOrLoad` does, with values as JSON, even those that are not cached. A cached text
   * that is not JSON counts as not cached, and stays.
   */
  getOrLoadJson<T>(key: string, load: () => Promise<T | null | undefined> | T | null | undefined, how: How<T>): Promise<T | null>;
}
