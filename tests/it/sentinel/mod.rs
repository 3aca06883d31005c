//! A primary that three sentinels watch: found, left, and found again.

mod discovery;
mod failover;
