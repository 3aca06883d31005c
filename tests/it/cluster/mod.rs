//! Redis Cluster: keys, tags and leases in whatever slots they fall into, slots that move, primaries that die.

pub(crate) mod traffic;
