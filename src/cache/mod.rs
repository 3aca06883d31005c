//! The only user of `redis`: connection, apply, tags, leases.
