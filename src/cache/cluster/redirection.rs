//! Redirections: answers of a node that does not run a command now, or not at all.

use redis::{ServerError, Value};

use super::super::address::Address;

/// Instruction of a node to send a command again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// Another node serves the slot.
    Moved(Address),
    /// Another node serves this command once.
    Ask(Address),
    /// The same node serves it later: some of its keys have moved, and some have not.
    Wait,
    /// The same node needs the script's source: it does not know the script.
    Script,
}

/// Returns what an answer redirects to, or `None` if the node ran the command.
pub(super) fn redirection(answer: &Value) -> Option<Redirection> {
    let Value::ServerError(error) = answer else { return None };
    match error.code() {
        "MOVED" => address(error).map(Redirection::Moved),
        "ASK" => address(error).map(Redirection::Ask),
        "TRYAGAIN" => Some(Redirection::Wait),
        "NOSCRIPT" => Some(Redirection::Script),
        _ => None,
    }
}

/// Reads `slot host:port`.
fn address(error: &ServerError) -> Option<Address> {
    let (_, endpoint) = error.details()?.split_once(' ')?;
    let (host, port) = endpoint.trim().rsplit_once(':')?;
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: &str, details: &str) -> Option<Redirection> {
        let error = redis::make_extension_error(code.into(), Some(details.into()));
        let errors = error.into_server_errors().unwrap();
        redirection(&Value::ServerError(errors[0].1.clone()))
    }

    #[test]
    fn redirections_are_read() {
        let at = |host: &str, port| Address { host: host.into(), port };
        assert_eq!(
            answered("MOVED", "3999 127.0.0.1:6381"),
            Some(Redirection::Moved(at("127.0.0.1", 6_381)))
        );
        assert_eq!(answered("ASK", "3999 ::1:6381"), Some(Redirection::Ask(at("::1", 6_381))));
        let nameless = at("", 6_381);
        assert_eq!(answered("MOVED", "3999 :6381"), Some(Redirection::Moved(nameless.clone())));
        assert_eq!(nameless.or_host_of(&at("h", 1)), at("h", 6_381));
        assert_eq!(
            answered("TRYAGAIN", "Multiple keys request during rehashing of slot"),
            Some(Redirection::Wait)
        );
        assert_eq!(answered("WRONGTYPE", ""), None);
        assert_eq!(redirection(&Value::Int(1)), None);
    }
}
