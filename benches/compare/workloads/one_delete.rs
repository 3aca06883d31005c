//! (a) One event deletes one key: the worker beside the bare loop and its peers.

use super::{NARROW_UNSTALE, ONE_DELETE, drain, narrow};
use crate::contender::Contender;
use crate::peers;
use crate::results::Results;
use crate::stage::Stage;

/// Each contender with its backlog, which takes fast ones seconds and slow ones not much longer.
const CONTENDERS: [(Contender, u64); 7] = [
    (Contender::Bare, 300_000),
    (Contender::BareWide, 300_000),
    (Contender::Unstale, 300_000),
    (Contender::Sketch, 300_000),
    (Contender::Node, 200_000),
    (Contender::AioPika, 40_000),
    (Contender::FastStream, 25_000),
];

pub(super) async fn run(stage: &Stage, rounds: usize, results: &mut Results) {
    peers::install();
    let target = stage.target("one-delete", ONE_DELETE).await;
    let narrow = stage.target_with("one-delete-narrow", ONE_DELETE, narrow()).await;
    for _ in 0..rounds {
        for (contender, events) in CONTENDERS {
            drain::one_delete(stage, contender, &target, events).await.note(
                results,
                'a',
                contender.name(),
            );
            if contender == Contender::Unstale {
                drain::one_delete(stage, contender, &narrow, events).await.note(
                    results,
                    'a',
                    NARROW_UNSTALE,
                );
            }
        }
    }
}
