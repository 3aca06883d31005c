//! `unstale-reader` together with the real worker: a loaded value is cached, unless an event
//! overtakes the load.

mod acl;
mod cluster;
mod crowds;
mod errors;
mod overtaken;
mod published;
mod values;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use unstale_reader::{Options, Outcome, Reader};

use crate::end_to_end::stage::Stage;

const HOUR: Duration = Duration::from_secs(3_600);

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE_URL}" } }
events:
  product.changed: { effects: [ { delete: ["product:{id}", "marker"] } ] }
  products.imported: { effects: [ { invalidate_tags: "products" }, { delete: "marker" } ] }
  product.priced: { effects: [ { write: "product:{id}", value: "{price}" }, { delete: "marker" } ] }
  product.expiring: { effects: [ { expire: "product:{id}", ttl: 30s }, { delete: "marker" } ] }
  product.ranked: { effects: [ { warm: "product:{id}", from: "catalogue:/{id}" } ] }
"#;

type Redis = MultiplexedConnection;

async fn reader(stage: &Stage, options: Options) -> Reader<Redis> {
    Reader::new(stage.connection().await, options)
}

/// A source of values that counts its loads.
#[derive(Clone, Default)]
struct Source {
    loads: Arc<AtomicUsize>,
}

impl Source {
    fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    async fn load(&self, value: &str) -> Result<Option<Vec<u8>>, &'static str> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(Some(value.into()))
    }
}

/// What a reader was told of its reads.
#[derive(Clone, Default)]
struct Outcomes(Arc<std::sync::Mutex<Vec<Outcome>>>);

impl Outcomes {
    fn options(&self) -> Options {
        let outcomes = self.clone();
        Options {
            observe: Some(Arc::new(move |outcome| outcomes.0.lock().unwrap().push(outcome))),
            ..Options::default()
        }
    }

    fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A load that waits until the test ends it.
#[derive(Clone, Default)]
struct Held {
    begun: Arc<Notify>,
    end: Arc<Notify>,
}

impl Held {
    async fn load(&self, value: &str) -> Result<Option<Vec<u8>>, &'static str> {
        self.begun.notify_one();
        self.end.notified().await;
        Ok(Some(value.into()))
    }
}
