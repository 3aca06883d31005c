//! The history as all nodes of a cluster have it.
//!
//! A replica that lags lacks the newest messages. Its end must not count as the end of the history.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use super::super::failure::BrokerError;
use super::survey::{self, Place, Survey};
use super::{History, worst};

/// Maximum time for other nodes to answer after the first one.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);

impl History {
    /// Surveys all named nodes, each on a connection of its own, and returns the furthest result.
    ///
    /// Returns `None` if one node is named, or the survey needs several connections.
    ///
    /// # Errors
    /// [`BrokerError`]: no node answers.
    pub(super) async fn survey_nodes(
        &mut self,
        places: &[Place],
    ) -> Result<Option<Survey>, BrokerError> {
        let nodes = self.config.urls.len();
        if nodes < 2 {
            return Ok(None);
        }
        // A node that did not answer once is not asked again.
        let asked: Vec<usize> = (0..nodes).filter(|node| !self.silent.contains(node)).collect();
        let mut missing: BTreeSet<usize> = asked.iter().copied().collect();
        let (mut surveys, mut failures) = (Vec::new(), Vec::new());
        let this = &*self;
        let survey_at = |node| async move {
            let surveyed = async {
                let connected = this.link_to(node).await?;
                survey::survey(&connected, &this.queue, places).await
            };
            (node, surveyed.await)
        };
        let mut surveying: FuturesUnordered<_> = asked.into_iter().map(survey_at).collect();
        let mut deadline = None;
        loop {
            let next = match deadline {
                None => surveying.next().await,
                Some(deadline) => timeout_at(deadline, surveying.next()).await.unwrap_or_default(),
            };
            match next {
                Some((node, Ok(survey))) => {
                    missing.remove(&node);
                    surveys.push((node, survey));
                    deadline.get_or_insert_with(|| Instant::now() + OTHERS_WITHIN);
                }
                Some((_, Err(failure))) => failures.push(failure),
                None => break,
            }
        }
        drop(surveying);
        let Some((node, survey)) = furthest(surveys) else {
            // The next survey asks all nodes again.
            self.silent.clear();
            // The survey of one node at a time can skip what the broker cannot read.
            return if failures.iter().any(BrokerError::is_final) {
                Err(worst(failures))
            } else {
                Ok(None)
            };
        };
        self.silent.extend(missing);
        self.node = node;
        Ok(Some(survey))
    }
}

/// Returns the survey with the greatest end, and the first of several. Offsets are the same at all
/// nodes.
fn furthest(surveys: impl IntoIterator<Item = (usize, Survey)>) -> Option<(usize, Survey)> {
    surveys.into_iter().reduce(|best, next| {
        let is_further = next.1.end > best.1.end || (next.1.end == best.1.end && next.0 < best.0);
        if is_further { next } else { best }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replica_that_lags_least_is_believed() {
        let survey = |first, end| Survey { first, end, known_end: end, places: Vec::new() };
        let lagging = (0, survey(0, 40));
        let furthest_of = |surveys: &[(usize, Survey)]| {
            furthest(surveys.iter().cloned()).map(|(node, survey)| (node, survey.end))
        };
        assert_eq!(
            furthest_of(&[lagging.clone(), (1, survey(0, 90)), (2, survey(0, 70))]),
            Some((1, 90))
        );
        assert_eq!(
            furthest_of(&[(2, survey(0, 90)), (1, survey(5, 90)), lagging.clone()]),
            Some((1, 90)),
            "the first of two"
        );
        assert_eq!(
            furthest_of(&[(1, survey(0, 0)), lagging]),
            Some((0, 40)),
            "a replica that has nothing yet"
        );
        assert_eq!(furthest_of(&[]), None);
    }
}
