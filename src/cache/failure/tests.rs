use super::*;

fn of(code: &str, detail: &str) -> CommandError {
    let error = redis::make_extension_error(code.into(), Some(detail.into()));
    let errors = error.into_server_errors().unwrap();
    classify("SET", &errors[0].1)
}

#[test]
fn errors_of_the_server_are_outages() {
    for (code, _) in OUTAGES {
        assert!(matches!(of(code, ""), CommandError::Outage(_)), "{code}");
    }
    assert!(matches!(of("ERR", "max number of clients reached"), CommandError::Outage(_)));
    assert!(matches!(of("NOAUTH", ""), CommandError::Outage(Outage { needs_person: true, .. })));
    assert!(matches!(of("LOADING", ""), CommandError::Outage(Outage { needs_person: false, .. })));
}

#[test]
fn a_refusal_names_command_and_code_but_quotes_no_text() {
    for (code, detail, message) in [
        ("WRONGTYPE", "Operation against key secret", "SET: WRONGTYPE"),
        ("NOPERM", "No permissions to access the 'secret' key", "SET: NOPERM"),
        (
            "ERR",
            "value is not an integer or out of range",
            "SET: ERR not an integer or out of range",
        ),
        (
            "ERR",
            "Error running script (call to f_1): @user_script:3: WRONGTYPE Operation against secret",
            "SET: WRONGTYPE",
        ),
        ("ERR", "The user executing the script can't run this command", "SET: ERR no permission"),
        (
            "ERR",
            "The user executing the script can't access at least one of the keys mentioned",
            "SET: ERR no permission",
        ),
        (
            "ERR",
            "ACL failure in script: No permissions to access a key script: secret",
            "SET: ERR no permission",
        ),
        (
            "ERR",
            "ACL failure in script: User worker has no permissions to run the 'incr' command script: secret",
            "SET: ERR no permission",
        ),
        (
            "ERR",
            "unknown command 'PEXPIREAT', with args beginning with: 'secret'",
            "SET: ERR unknown command: Redis 7.0 or newer is needed, with no command renamed",
        ),
        (
            "ERR",
            "Unknown Redis command called from script script: secret",
            "SET: ERR unknown command: Redis 7.0 or newer is needed, with no command renamed",
        ),
        (
            "ERR",
            "Unknown command called from script script: secret",
            "SET: ERR unknown command: Redis 7.0 or newer is needed, with no command renamed",
        ),
    ] {
        let refused = of(code, detail);
        assert!(
            !matches!(refused, CommandError::Outage(_) | CommandError::Failed(_)),
            "{refused:?}"
        );
        assert_eq!(refused.in_full(), message);
    }
    let nested =
        of("ERR", "Error running script (call to f_1): @user_script:3: -OOM command not allowed");
    assert!(matches!(nested, CommandError::Outage(_)), "{nested}");
}

#[test]
fn an_unknown_error_is_retried() {
    let failed = of("NEWCODE", "secret");
    assert!(matches!(failed, CommandError::Failed(_)), "{failed:?}");
    assert_eq!(failed.in_full(), "SET: NEWCODE");
}

#[test]
fn a_refusal_of_the_user_may_be_permitted_later() {
    for (code, detail, may_be) in [
        ("NOPERM", "", true),
        ("ERR", "ACL failure in script: User worker has no permissions", true),
        ("ERR", "unknown command 'GETEX'", true),
        ("WRONGTYPE", "", false),
        ("ERR", "value is not an integer or out of range", false),
    ] {
        let outcome = of(code, detail).into_outcome().unwrap();
        let EffectOutcome::Dead { may_be_permitted, message, .. } = outcome else {
            panic!("{code}: {outcome:?}")
        };
        assert_eq!(may_be_permitted, may_be, "{message}");
    }
}
