//! Limits for figures beside the peers, and whether this run met them.

use serde::Serialize;

use crate::contender::Contender::{AioPika, Bare, BareWide, FastStream, Node, Sketch, Unstale};
use crate::results::Results;
use crate::workloads::{
    NARROW_UNSTALE, latency, memory, realistic, scale, tag, warm, write_through,
};

const RATE: &str = "events/s";
const CPU: &str = "µs of CPU an event";
const MEMORY: &str = "MiB resident at most";
const LOADS: &str = "loads/s";

/// A limit, and the measured figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) workload: char,
    pub(crate) what: String,
    pub(crate) seen: Option<f64>,
    pub(crate) bound: Bound,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Reported beside the others.
    None,
}

impl Figure {
    pub(crate) fn holds(&self) -> Option<bool> {
        let seen = self.seen?;
        match self.bound {
            Bound::AtLeast(bound) => Some(seen >= bound),
            Bound::AtMost(bound) => Some(seen <= bound),
            Bound::None => None,
        }
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match (self.seen, self.holds()) {
            (None, _) => "not measured",
            (Some(_), None) => "",
            (Some(_), Some(true)) => "holds",
            (Some(_), Some(false)) => "MISSED",
        }
    }
}

/// Returns the figures of the workloads that were run.
#[rustfmt::skip]
pub(crate) fn figures(results: &Results) -> Vec<Figure> {
    use Bound::{AtLeast, AtMost, None};
    let figure = |workload, what: &str, seen, bound| Figure { workload, what: what.to_owned(), seen, bound };
    let rate = |workload, who, to| results.ratio(workload, RATE, who, to);
    let (ours, bare) = (Unstale.name(), Bare.name());
    let mut all = vec![
        figure('a', "events/s against the bare lapin drain", rate('a', ours, bare), AtLeast(0.90)),
        figure('a', "the same with UNSTALE_PREFETCH=1000", rate('a', NARROW_UNSTALE, bare), None),
        figure('a', "events/s against the bare drain with a prefetch of 6,000", rate('a', ours, BareWide.name()), None),
        figure('a', "events/s against hand-written Node", rate('a', ours, Node.name()), AtLeast(2.5)),
        figure('a', "events/s against aio-pika", rate('a', ours, AioPika.name()), None),
        figure('a', "events/s against FastStream", rate('a', ours, FastStream.name()), AtLeast(25.0)),
        figure('a', "events/s of a bare loop with one UNLINK against the bare drain", rate('a', Sketch.name(), bare), None),
        figure('a', "CPU an event against the bare drain's", results.ratio('a', CPU, ours, bare), AtMost(1.6)),
        figure('b', "events/s against the bare drain", rate('b', ours, bare), AtLeast(0.45)),
        figure('b', "events/s of Redis alone, sent the same again, against the bare drain", rate('b', realistic::REDIS_ALONE, bare), None),
        figure('c', "events/s against the bare drain", rate('c', ours, bare), AtLeast(0.60)),
        figure('c', "the same, versioned and tagged", rate('c', write_through::WITH_VERSION_AND_TAGS, bare), None),
        figure('d', "commands sent to Redis an event", results.median('d', ours, "commands an event"), AtMost(0.05)),
        figure('e', "keys/s of the tag", results.median('e', ours, "keys/s of the tag"), AtLeast(200_000.0)),
        figure('e', "ms, worst of the other client beyond its quiet run", results.beyond('e', tag::PROBE_WORST, tag::DRAINING, tag::QUIET_RUN), AtMost(10.0)),
        figure('e', "ms, p99 of the other client beyond its quiet run", results.beyond('e', tag::PROBE_P99, tag::DRAINING, tag::QUIET_RUN), AtMost(4.0)),
        figure('e', "p99 of single-key events beside it, against the quiet run", results.ratio('e', tag::EVENT_P99, tag::DRAINING, tag::QUIET_RUN), AtMost(5.0)),
    ];
    for (p50, p99, load) in latency::LOADS {
        all.push(figure('f', &format!("p50 against the bare loop with one UNLINK, {load}"), results.ratio('f', p50, ours, Sketch.name()), AtMost(1.15)));
        all.push(figure('f', &format!("p99 against the bare loop with one UNLINK, {load}"), results.ratio('f', p99, ours, Sketch.name()), AtMost(1.3)));
    }
    all.extend([
        figure('g', "MiB resident with a backlog of 1,000,000", results.median('g', memory::WITH_BACKLOG, MEMORY), AtMost(32.0)),
        figure('g', "MiB resident with 1,000 tags of 1,000", results.median('g', memory::WITH_TAGS, MEMORY), AtMost(32.0)),
        figure('h', "CPU an event of four workers against one", results.ratio('h', CPU, scale::FOUR, scale::ONE), AtMost(1.2)),
        figure('h', "the same of the bare loop with one UNLINK", results.ratio('h', CPU, scale::FOUR_BARE, scale::ONE_BARE), None),
        figure('i', "events/s against the bare drain over the same link", rate('i', ours, bare), AtLeast(0.85)),
        figure('i', "the same with UNSTALE_PREFETCH=1000", rate('i', NARROW_UNSTALE, bare), None),
        figure('i', "events/s against the bare drain with a prefetch of 6,000", rate('i', ours, BareWide.name()), None),
        figure('j', "loads/s against the loader's own limit", results.across(('j', warm::BESIDE, LOADS), ('j', warm::LOADER, LOADS)), AtLeast(0.90)),
        figure('j', "events/s beside warms against alone", rate('j', warm::BESIDE, warm::ALONE), AtLeast(0.80)),
    ]);
    all.retain(|figure| results.series.iter().any(|series| series.workload == figure.workload));
    all
}
