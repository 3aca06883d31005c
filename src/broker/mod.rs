//! The only user of `lapin`: session, topology, consume, publish, settle.
