//! The protocol between readers and workers. The page `docs/reference/reader-scripts.md` describes
//! it.
//!
//! The worker of unstale uses this module too. So both have the same names and the same scripts.
//! The module is not part of the public API: any release may change it.
//!
//! - `side_keys`: names of the keys that both sides use
//! - `slot`: the part of a key that decides its slot in a Redis Cluster
//! - `scripts`: the Lua scripts of readers, and the pieces that the worker's scripts share

pub mod scripts;
pub mod side_keys;
pub mod slot;

/// Returns a token that no other holder of a lease has.
pub fn new_token() -> String {
    format!("{:032x}", fastrand::u128(..))
}
