import type { Cluster, Redis } from "ioredis";

/**
 * How a read went.
 *
 * - `hit`: cached
 * - `waited`: another loaded it meanwhile
 * - `filled`: loaded, and cached
 * - `void`: loaded, and not cached: it was invalidated meanwhile, or the load outlasted its lease
 * - `absent`: the loader gave null
 * - `crowded`: another's load did not end in time: loaded, not cached
 * - `away`: Redis is away or refuses: loaded, not cached
 * - `unreadable`: something else stands at the key: loaded, not cached
 * - `kept`: an early load failed, and the value that is still good was kept
 */
export type Outcome = "hit" | "waited" | "filled" | "void" | "absent" | "crowded" | "away" | "unreadable" | "kept";

/** The prefixes are those of the worker. */
export interface Options {
  /** `UNSTALE_KEY_PREFIX`, then the file's `key_prefix`. Not before tags. */
  keyPrefix?: string;
  /** `UNSTALE_TAG_PREFIX`; default `cache_tag:`. */
  tagPrefix?: string;
  /** How long a load may take; a slower one is not cached. Default 5,000, at most 360,000. */
  leaseMs?: number;
  /** How long to wait for the load of another before loading by oneself, uncached. At least `leaseMs`; default 10,000, or `leaseMs`. */
  waitMs?: number;
  /** So long before its end a value is loaded again by one reader, while the others get it as it is. Default 0. */
  staleMs?: number;
  /** The part of a TTL that chance may take off. Default 0.1. */
  jitter?: number;
  /** How long one answer of Redis is waited for: later, Redis counts as away. Default 1,000. */
  timeoutMs?: number;
  /** Told of each read, for metrics. */
  observe?: (outcome: Outcome) => void;
}

export interface How<T> {
  /** The longest that the value is cached. */
  ttlMs: number;
  /** Names, or a function of the loaded value. */
  tags?: Iterable<string> | ((value: T) => Iterable<string>);
}

/** Reads through the cache. Never fails for its sake: where Redis is away, values are loaded and not cached. */
export class Reader {
  /** @throws where an option is wrong, or the client has a `keyPrefix`: the reader has its own. */
  constructor(client: Redis | Cluster, options?: Options);

  /**
   * The bytes at `key`; where there are none, what `load` gives, cached. Null from `load` is not cached.
   *
   * `load` is called once at most; what it throws is thrown, and the lease is given back first. A value that was invalidated while it loaded
   * is returned to this call alone.
   */
  getOrLoad(
    key: string,
    load: () => Promise<Uint8Array | string | null | undefined> | Uint8Array | string | null | undefined,
    how: How<Buffer>,
  ): Promise<Buffer | null>;

  /**
   * As `getOrLoad`, with values as JSON: what is returned has been through JSON, cached or not. What is no JSON at the key counts as not
   * cached, and stays.
   */
  getOrLoadJson<T>(key: string, load: () => Promise<T | null | undefined> | T | null | undefined, how: How<T>): Promise<T | null>;
}
