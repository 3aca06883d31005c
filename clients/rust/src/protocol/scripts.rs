//! The Lua scripts of readers, each in a file of its own.

/// Reads text that any program may have written, and tells our numbers from it.
pub const TEXT: &str = include_str!("lua/text.lua");
/// Checks whether a tag was invalidated since a number of the sequence.
pub const GENERATION: &str = include_str!("lua/generation.lua");
/// Adds a key to a tag's set, and sets a key.
pub const TAG_MEMBER: &str = include_str!("lua/tag_member.lua");

/// Finds a value, or takes the lease.
pub const READ: &str = concat!(include_str!("lua/text.lua"), include_str!("lua/read.lua"));
/// Adds a key to a tag's set and checks the tag's generation. A fill runs it for a tag whose set is
/// in another slot than the key.
pub const JOIN: &str = concat!(
    include_str!("lua/text.lua"),
    include_str!("lua/generation.lua"),
    include_str!("lua/tag_member.lua"),
    include_str!("lua/join.lua")
);
/// Fills a key and adds it to the sets of tags on the same server.
pub const FILL: &str = concat!(
    include_str!("lua/text.lua"),
    include_str!("lua/generation.lua"),
    include_str!("lua/tag_member.lua"),
    include_str!("lua/fill.lua")
);
/// Releases a lease.
pub const RELEASE: &str = concat!(include_str!("lua/text.lua"), include_str!("lua/release.lua"));

/// The complete scripts of the protocol, by their published names. The page
/// `docs/reference/reader-scripts.md` prints them, and every client sends them.
pub const READER_SCRIPTS: [(&str, &str); 4] =
    [("read", READ), ("join", JOIN), ("fill", FILL), ("release", RELEASE)];
