use super::state::OVERLAP;
use super::*;

const LATER: Duration = Duration::from_secs(2);

fn event() -> [Delivery; 1] {
    [Delivery::of("events", "user.updated", b"{}")]
}

/// Returns a look that saw the slow queue empty, and possibly the main queue.
fn look(began_ms: u64, main_empty: bool) -> Look {
    let began = UNIX_EPOCH + Duration::from_millis(began_ms);
    Look { began, main_empty, slow_empty: true, retries_empty_since: None }
}

/// Sees the queue empty at that time, with everything read.
fn quiet(watermark: &Watermark, began_ms: u64) {
    watermark.looked(look(began_ms, true));
    watermark.change(|state| state.all_read(Instant::now() + LATER));
}

/// Sees both queues empty, `delay` from now.
fn seen_empty_in(watermark: &Watermark, delay: Duration) {
    let second = watermark.second(delay);
    watermark.change(|state| state.looked(look(0, true), second, Instant::now() + delay));
}

fn bound_in(watermark: &Watermark, delay: Duration) -> u64 {
    watermark.change(|state| state.lowest_bound(Instant::now() + delay)).time_ms
}

#[test]
fn a_queue_that_was_empty_moves_it_on_once_all_that_was_delivered_is_read() {
    let watermark = Watermark::new(Metrics::new());
    assert_eq!(watermark.now().time_ms, 0, "the queue may hold what is as old as anything");
    watermark.looked(look(500, true));
    assert_eq!(watermark.now().time_ms, 0, "what was delivered before may wait to be read");
    watermark.all_read();
    assert_eq!(watermark.now().time_ms, 0, "or be under way");
    watermark.change(|state| state.all_read(Instant::now() + LATER));
    assert_eq!(watermark.now().time_ms, 500);
    watermark.looked(look(900, false));
    watermark.change(|state| state.all_read(Instant::now() + LATER));
    assert_eq!(watermark.now().time_ms, 500, "an hour's backlog keeps it where it began");
}

#[test]
fn deliveries_in_flight_and_requeued_ones_hold_the_watermark_back() {
    let watermark = Watermark::new(Metrics::new());
    quiet(&watermark, 500);
    let (settled, given_back) = (watermark.take(&event()), watermark.take(&event()));
    quiet(&watermark, 900);
    assert_eq!(watermark.now().time_ms, 500);
    settled.settled();
    drop(settled);
    assert_eq!(watermark.now().time_ms, 500);
    drop(given_back);
    assert_eq!(bound_in(&watermark, OVERLAP * 2), 500, "no look has seen the queue empty");
    seen_empty_in(&watermark, LATER);
    assert_eq!(bound_in(&watermark, LATER), 500, "its holder noted it before");
    assert_eq!(bound_in(&watermark, OVERLAP + LATER), 900);
}

#[test]
fn copies_keep_it_back_until_they_are_due_and_gone() {
    let watermark = Watermark::new(Metrics::new());
    quiet(&watermark, 900);
    watermark.copied(LaneName::Main, Duration::from_secs(600), 300.into());
    seen_empty_in(&watermark, LATER);
    assert_eq!(
        bound_in(&watermark, Duration::from_secs(599) + OVERLAP),
        300,
        "an empty queue says nothing of what still waits"
    );
    seen_empty_in(&watermark, Duration::from_secs(602));
    assert_eq!(bound_in(&watermark, Duration::from_secs(603) + OVERLAP), 900);
}

/// A deploy, or a dead worker: no message of the stopped workers waits anywhere.
#[test]
fn empty_retry_queues_let_go_of_copies_before_they_are_due() {
    let watermark = Watermark::new(Metrics::new());
    let before = Look { retries_empty_since: Some(Instant::now()), ..look(900, true) };
    watermark.inherit(Some(200.into()), Duration::from_secs(600), true);
    quiet(&watermark, 900);
    assert!(watermark.waits_for_retries());
    watermark.looked(before);
    assert_eq!(bound_in(&watermark, OVERLAP * 2), 200, "the look had begun before");
    watermark.looked(Look {
        retries_empty_since: Some(Instant::now()),
        main_empty: false,
        ..look(950, true)
    });
    assert_eq!(bound_in(&watermark, OVERLAP * 2), 200, "the copies may be in the main queue");
    watermark.looked(Look { retries_empty_since: Some(Instant::now()), ..look(950, true) });
    watermark.change(|state| state.let_go.retain(|(queue, _), _| *queue == Queue::Main));
    assert_eq!(
        (bound_in(&watermark, Duration::ZERO), bound_in(&watermark, OVERLAP + LATER)),
        (200, 900)
    );
    assert!(!watermark.waits_for_retries());
}

#[test]
fn the_end_of_a_session_requeues_unread_deliveries() {
    let watermark = Watermark::new(Metrics::new());
    quiet(&watermark, 500);
    watermark.set_lowest(Some(400.into()));
    watermark.session_ended();
    quiet(&watermark, 900);
    assert_eq!(watermark.now().time_ms, 400, "copies among it may be as old as the lowest mark");
    watermark.change(|state| {
        state.looked(
            Look { main_empty: false, ..look(0, true) },
            watermark.second(LATER),
            Instant::now() + LATER,
        )
    });
    assert_eq!(bound_in(&watermark, OVERLAP * 2), 400, "the main queue may hold such copies too");
    seen_empty_in(&watermark, LATER);
    assert_eq!(bound_in(&watermark, OVERLAP + LATER), 900);
}

#[test]
fn a_new_worker_answers_for_those_that_are_gone() {
    let watermark = Watermark::new(Metrics::new());
    watermark.inherit(Some(200.into()), Duration::ZERO, true);
    quiet(&watermark, 900);
    assert_eq!(watermark.now().time_ms, 200);
    seen_empty_in(&watermark, LATER);
    assert_eq!(bound_in(&watermark, OVERLAP + LATER), 900);
    let taken = watermark.take(&event());
    assert_eq!(
        taken.bound_of(&event()[0]).time_ms,
        900,
        "what comes first-hand arrived after the queue was empty"
    );
}

/// Samples the history's end, as of that long ago.
fn sampled_before(watermark: &Watermark, ago: Duration, offset: u64) {
    watermark.change(|state| state.sampled(Instant::now().checked_sub(ago).unwrap(), offset));
}

#[test]
fn offsets_follow_a_minute_behind_at_any_time_of_the_clock() {
    let watermark = Watermark::new(Metrics::new());
    watermark.begin(UNIX_EPOCH + Duration::from_millis(500), 10, None);
    assert_eq!(watermark.now(), LowWatermark { time_ms: 500, offset: Some(10) });
    sampled_before(&watermark, Duration::from_secs(70), 20);
    sampled_before(&watermark, Duration::from_secs(5), 30);
    quiet(&watermark, 400);
    assert_eq!(
        watermark.now(),
        LowWatermark { time_ms: 500, offset: Some(20) },
        "the clock went back, the history did not"
    );
    let taken = watermark.take(&event());
    assert_eq!(taken.bound_of(&event()[0]).offset, Some(20));
    sampled_before(&watermark, Duration::ZERO, 40);
    watermark.change(|state| assert_eq!(state.samples.len(), 3, "one that is old enough is kept"));
}

#[test]
fn a_stream_that_began_anew_is_healed_from_its_beginning() {
    let watermark = Watermark::new(Metrics::new());
    watermark.begin(UNIX_EPOCH + Duration::from_millis(500), 10, None);
    let _taken = watermark.take(&event());
    sampled_before(&watermark, Duration::from_secs(70), 20);
    sampled_before(&watermark, Duration::ZERO, 3);
    assert_eq!(watermark.now().offset, Some(0));
}

#[test]
fn after_a_heal_only_deliveries_in_flight_lie_before_it() {
    let watermark = Watermark::new(Metrics::new());
    watermark.inherit(Some(200.into()), Duration::from_secs(600), true);
    assert!(!watermark.is_all_settled(), "copies of those that are gone may wait");
    watermark.begin(UNIX_EPOCH + Duration::from_millis(900), 7, None);
    assert_eq!(watermark.now(), LowWatermark { time_ms: 900, offset: Some(7) });
    assert!(watermark.is_all_settled());
    let taken = watermark.take(&event());
    watermark.begin(UNIX_EPOCH + Duration::from_millis(1_900), 8, None);
    assert_eq!(watermark.now(), LowWatermark { time_ms: 900, offset: Some(7) });
    assert!(!watermark.is_all_settled());
    taken.settled();
}

/// The heal applies neither the event in its queue nor the republished one.
#[test]
fn what_a_heal_left_out_keeps_it_back() {
    let watermark = Watermark::new(Metrics::new());
    quiet(&watermark, 500);
    watermark.copied(
        LaneName::Main,
        Duration::from_secs(3_600),
        LowWatermark { time_ms: 300, offset: Some(4) },
    );
    watermark.begin(UNIX_EPOCH + Duration::from_millis(900), 10, Some(7));
    assert_eq!(
        watermark.now(),
        LowWatermark { time_ms: 300, offset: Some(4) },
        "it waits for its retry"
    );
    let waited = watermark.take(&event());
    assert_eq!(
        waited.bound_of(&event()[0]).offset,
        Some(7),
        "what comes first-hand now may be what was left out"
    );
    waited.settled();
    watermark.begin(UNIX_EPOCH + Duration::from_millis(900), 10, None);
    assert_eq!(
        watermark.now(),
        LowWatermark { time_ms: 900, offset: Some(10) },
        "nothing was left out"
    );
}

#[test]
fn what_others_left_is_inherited_until_a_heal_has_applied_it() {
    let watermark = Watermark::new(Metrics::new());
    watermark.inherit(None, Duration::ZERO, true);
    assert_eq!(watermark.inherited(), None);
    let lowest = LowWatermark { time_ms: 300, offset: Some(4) };
    watermark.inherit(Some(lowest), Duration::ZERO, true);
    quiet(&watermark, 900);
    assert_eq!(watermark.inherited(), Some(lowest));
    watermark.begin(UNIX_EPOCH + Duration::from_millis(900), 10, None);
    assert_eq!(watermark.inherited(), None);
    watermark.inherit(Some(lowest), Duration::ZERO, false);
    assert_eq!(watermark.inherited(), None, "others live");
}
