//! The only place that decides by the texts of Redis' errors.
//!
//! An error has a code, such as `OOM`, and `failure` decides by it. Many errors share the code
//! `ERR`, and errors within a script may lose their code. Then only the text is left, and it is
//! read here.
//!
//! The texts are those of Redis 7.0.15, 8.0.2 and 8.0.6, and of Valkey 8.1.1 and 9.1.2. They come
//! from `networking.c`, `server.c`, `script.c`, `script_lua.c`, `acl.c`, `t_string.c`, `t_hash.c`,
//! `expire.c` and `sentinel.c`.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Meaning of an error whose code is `ERR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    /// The server takes no more connections (`maxclients`).
    TooManyClients,
    /// A value, or an argument, is not an integer of 64 bits.
    NoInteger,
    /// A counter would leave 64 bits.
    Overflow,
    /// A time to live is 0, negative or too large.
    InvalidExpire,
    /// The server does not have the command, or calls it by another name.
    UnknownCommand,
    /// The command does not have the option.
    UnsupportedOption,
    /// The user may not run a command of a script, or not on such a key.
    NoPermission,
    /// A sentinel watches no primary of that name.
    UnknownPrimary,
}

/// Texts with their meanings.
const PLAIN: [(&str, Plain); 12] = [
    ("max number of clients", Plain::TooManyClients),
    ("not an integer", Plain::NoInteger),
    ("would overflow", Plain::Overflow),
    ("invalid expire", Plain::InvalidExpire),
    ("unknown command", Plain::UnknownCommand),
    // Within a script: Redis, and Valkey.
    ("Unknown Redis command called from script", Plain::UnknownCommand),
    ("Unknown command called from script", Plain::UnknownCommand),
    ("Unsupported option", Plain::UnsupportedOption),
    // Within a script: Redis 7.0, then Redis since 7.2 and Valkey.
    ("user executing the script can't", Plain::NoPermission),
    ("ACL failure in script", Plain::NoPermission),
    ("No such master with that name", Plain::UnknownPrimary),
    ("No such master with specified name", Plain::UnknownPrimary),
];

/// Reads the text of an error whose code is `ERR`.
pub(super) fn plain(details: &str) -> Option<Plain> {
    PLAIN.iter().find(|(text, _)| details.contains(text)).map(|(_, meaning)| *meaning)
}

/// Returns the code of an error within a script, which some servers put into the text of an `ERR`.
///
/// The text is `Error running script (call to f_…): @user_script:3: -OOM command not allowed`. Only
/// one of the `known` codes is taken for a code.
pub(super) fn code_in_script(details: &str, known: impl Fn(&str) -> bool) -> Option<&str> {
    let words = details.strip_prefix("Error running script")?;
    words.split([' ', '-']).find(|word| known(word))
}

/// Returns whether the server refused the database that the URL names.
///
/// The library replaces the server's error by this text of its own (1.8, `connection.rs`).
pub(super) fn is_refused_database(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && error.to_string().starts_with("Redis server refused to switch database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_every_version_are_read() {
        for (text, meaning) in [
            ("max number of clients reached", Some(Plain::TooManyClients)),
            ("max number of clients + cluster connections reached", Some(Plain::TooManyClients)),
            ("value is not an integer or out of range", Some(Plain::NoInteger)),
            ("hash value is not an integer", Some(Plain::NoInteger)),
            ("increment or decrement would overflow", Some(Plain::Overflow)),
            ("decrement would overflow", Some(Plain::Overflow)),
            ("invalid expire time in 'set' command", Some(Plain::InvalidExpire)),
            // Redis 8.0.
            ("invalid expire time, must be >= 0", Some(Plain::InvalidExpire)),
            ("unknown command 'X', with args beginning with: 'k'", Some(Plain::UnknownCommand)),
            ("Unknown Redis command called from script script: 1a", Some(Plain::UnknownCommand)),
            ("Unknown command called from script script: 1a", Some(Plain::UnknownCommand)),
            ("Unsupported option LT", Some(Plain::UnsupportedOption)),
            ("The user executing the script can't run this command", Some(Plain::NoPermission)),
            (
                "The user executing the script can't access at least one of the keys mentioned",
                Some(Plain::NoPermission),
            ),
            (
                "ACL failure in script: No permissions to access a key script: 1a",
                Some(Plain::NoPermission),
            ),
            (
                "ACL failure in script: User u has no permissions to run the 'incr' command script: 1a",
                Some(Plain::NoPermission),
            ),
            ("No such master with that name", Some(Plain::UnknownPrimary)),
            ("No such master with specified name.", Some(Plain::UnknownPrimary)),
            ("syntax error", None),
        ] {
            assert_eq!(plain(text), meaning, "{text}");
        }
    }

    #[test]
    fn a_script_may_hide_the_code_in_its_text() {
        let known = |word: &str| ["OOM", "WRONGTYPE"].contains(&word);
        for (text, code) in [
            (
                "Error running script (call to f_1): @user_script:3: WRONGTYPE Operation against a key",
                Some("WRONGTYPE"),
            ),
            (
                "Error running script (call to f_1): @user_script:3: -OOM command not allowed",
                Some("OOM"),
            ),
            ("Error running script, @user_script:3: ERR syntax error", None),
            ("a text with the word OOM", None),
        ] {
            assert_eq!(code_in_script(text, known), code, "{text}");
        }
    }

    #[test]
    fn a_refused_database_is_known_by_the_text_of_the_library() {
        let kind = ErrorKind::Server(ServerErrorKind::ResponseError);
        for (error, refused) in [
            (RedisError::from((kind, "Redis server refused to switch database")), true),
            (
                RedisError::from((
                    kind,
                    "Redis server refused to switch database",
                    "DB index is out of range".to_owned(),
                )),
                true,
            ),
            (RedisError::from((kind, "another text")), false),
            (RedisError::from((ErrorKind::Io, "Redis server refused to switch database")), false),
        ] {
            assert_eq!(is_refused_database(&error), refused, "{error}");
        }
    }
}
