use std::error::Error;
use std::io;

use lapin::ErrorKind;
use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

use super::*;

const REFUSED: &str = "ACCESS_REFUSED - Login was refused";

fn refused() -> lapin::Error {
    let reply = AMQPError::new(AMQPSoftError::ACCESSREFUSED.into(), REFUSED.into());
    ErrorKind::ProtocolError(reply).into()
}

fn at(url: &str, cause: Cause) -> NodeFailure {
    NodeFailure { url: url.to_owned(), cause }
}

#[test]
fn each_error_shows_its_causes_once_and_keeps_its_source() {
    let reset = || AmqpError::from(lapin::Error::from(io::Error::other("reset by peer")));
    let missing = AMQPError::new(
        AMQPSoftError::NOTFOUND.into(),
        "NOT_FOUND - no exchange 'x' in vhost '/'".into(),
    );
    let missing = AmqpError::from(lapin::Error::from(ErrorKind::ProtocolError(missing)));
    let advice = BrokerError::Refused("".into()).advice().unwrap();
    let lost = SessionEnded::from(reset());
    for (error, shown) in [
        (
            BrokerError::Unreachable(vec![at("amqp://a", reset().into())].into()).in_full(),
            "RabbitMQ cannot be reached: amqp://a: reset by peer".to_owned(),
        ),
        (
            BrokerError::Unreachable(
                vec![at("amqp://a", reset().into()), at("amqp://b", "silent".into())].into(),
            )
            .in_full(),
            "RabbitMQ cannot be reached: amqp://a: reset by peer; amqp://b: silent".to_owned(),
        ),
        (
            BrokerError::Refused(refused().into()).in_full(),
            format!("RabbitMQ refused us: {REFUSED}; {advice}"),
        ),
        (
            BrokerError::History {
                problem: HistoryProblem::Forbidden,
                queue: "q".to_owned(),
                cause: refused().into(),
            }
            .in_full(),
            format!("stream `q`: {REFUSED}; {GRANT}"),
        ),
        (lost.in_full(), "the session with RabbitMQ ended: reset by peer".to_owned()),
        (
            PublishError::Ended(lost.clone()).in_full(),
            "the session with RabbitMQ ended: reset by peer".to_owned(),
        ),
        (
            BrokerError::from(lost).in_full(),
            "RabbitMQ cannot be reached: reset by peer".to_owned(),
        ),
        (
            PublishError::Refused(refused().into()).in_full(),
            format!("RabbitMQ refused the message: {REFUSED}; {GRANT}"),
        ),
        (
            PublishError::Refused(missing).in_full(),
            "RabbitMQ refused the message: NOT_FOUND - no exchange 'x' in vhost '/'; start a worker, which declares the exchange, or set UNSTALE_EXCHANGE".to_owned(),
        ),
    ] {
        assert_eq!(error, shown);
    }
    let error = BrokerError::Refused(refused().into());
    assert_eq!(error.source().unwrap().to_string(), REFUSED);
}

#[test]
fn the_problems_of_a_topology_are_listed_each_with_its_advice() {
    let problem = |object, advice: &'static str| TopologyProblem {
        object,
        cause: refused().into(),
        advice: advice.into(),
    };
    let error = BrokerError::Topology(vec![
        problem(ContractObject::Queue("q".to_owned()), GRANT),
        problem(
            ContractObject::Binding { queue: "q".to_owned(), key: "a.*".to_owned() },
            "bind it",
        ),
        problem(ContractObject::Exchange(String::new()), "grant it"),
    ]);
    assert_eq!(
        error.in_full(),
        format!(
            "queue `q`: {REFUSED}; {GRANT}\nbinding of queue `q` to `a.*`: {REFUSED}; bind it\nthe default exchange: {REFUSED}; grant it"
        )
    );
}

#[test]
fn a_failed_attempt_to_connect_is_sorted_by_what_helps() {
    let reply = |kind: AMQPHardError, text: &str| {
        lapin::Error::from(ErrorKind::ProtocolError(AMQPError::new(kind.into(), text.into())))
    };
    let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    for (error, is_final, shown) in [
        (refused(), true, REFUSED),
        (
            reply(
                AMQPHardError::NOTALLOWED,
                "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached",
            ),
            false,
            "connection limit (1)",
        ),
        (
            reply(AMQPHardError::CONNECTIONFORCED, "CONNECTION_FORCED - shutdown"),
            false,
            "CONNECTION_FORCED",
        ),
        (
            io::Error::from(io::ErrorKind::ConnectionRefused).into(),
            false,
            "RabbitMQ cannot be reached: connection refused",
        ),
        (
            io::Error::new(io::ErrorKind::InvalidData, untrusted).into(),
            false,
            "set UNSTALE_AMQP_TLS_CA to the certificate of the authority",
        ),
    ] {
        let error = connect_error(error);
        assert_eq!(error.is_final(), is_final, "{error:?}");
        assert!(error.in_full().contains(shown), "{}", error.in_full());
    }
}

#[test]
fn the_end_of_a_session_is_known_by_its_source() {
    let internal = AMQPError::new(AMQPHardError::INTERNALERROR.into(), "any text".into());
    let internal = SessionEnded::from(lapin::Error::from(ErrorKind::ProtocolError(internal)));
    assert!(internal.is_internal_error() && !internal.is_lost_connection());
    let reset = SessionEnded::from(lapin::Error::from(io::Error::other("INTERNAL_ERROR")));
    assert!(!reset.is_internal_error() && reset.is_lost_connection());
    let found = SessionEnded::new("INTERNAL_ERROR");
    assert!(!found.is_internal_error() && !found.is_lost_connection());
}
