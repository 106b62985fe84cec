//! Live projections on a real database: killed, superseded, delivered to twice, poisoned, and with a restored log.

use std::sync::Arc;
use std::time::Instant;

use daybook_event_bus::consume::Source;
use daybook_event_store::RecordedEvent;
use daybook_projector::batch::Batch;
use daybook_projector::feed::Feed;
use daybook_projector::rebuild::{self, Rebuilder};
use daybook_projector::registry;
use daybook_projector::worker::{Context, Step, StepError, Worker};
use daybook_read_model::{CustomerTotals, EventIndex, OrderDetails, OrderList, ReadModel};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Orders, Setup, drain, eventually, foreign_event, unknown_event};

/// Two gates: while somebody holds the first no row is committed, while somebody holds the second no checkpoint. They are
/// written, and the commit waits. Were rows and checkpoint ever committed apart, one of the two gates would come between.
const GATE: &str = "
    CREATE FUNCTION public.wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(tg_argv[0]::bigint);
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON read_model.checkpoint_step DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.wait_at_the_gate(2);
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON read_model.order_list_g1 DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.wait_at_the_gate(1);
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON read_model.order_details_g1 DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.wait_at_the_gate(1);
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON read_model.customer_totals_g1 DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.wait_at_the_gate(1)
";

/// Lets a projection apply what there is, and kills it when it has done everything but commit.
async fn die_between_apply_and_commit<M: ReadModel>(setup: &Setup) {
    let before = setup.position(M::NAME).await;
    let working = tokio::spawn(setup.worker::<M>().await.run(CancellationToken::new()));
    let at_the_gate = "FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually("a worker before its commit", async || {
        setup
            .value::<i64>(&format!("SELECT count(*) {at_the_gate}"))
            .await
            > 0
    })
    .await;
    working.abort();
    let ended = working.await;
    assert!(ended.is_err_and(|error| error.is_cancelled()), "it was at work");
    // The server notices only when it answers that nobody is there any more, and it would commit before that.
    let killed: i64 = setup
        .value(&format!("SELECT count(pg_terminate_backend(pid)) {at_the_gate}"))
        .await;
    assert_eq!(killed, 1);
    eventually("the end of its session", async || {
        let sessions: i64 = setup
            .value(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE 'daybook-projector %/0'",
            )
            .await;
        sessions == 0
    })
    .await;
    assert_eq!(setup.position(M::NAME).await, before, "nothing was committed");
    setup.kill_replicas().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_between_apply_and_commit_a_hundred_times_end_with_the_fold() {
    let setup = Setup::new().await;
    sqlx::raw_sql(GATE)
        .execute(&setup.superuser)
        .await
        .expect("a trigger");
    let mut orders = Orders::new(1);
    for round in 0..34 {
        orders.append(&setup, 30).await;
        let mut gate = setup.superuser.acquire().await.expect("a connection");
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(round % 2 + 1_i64)
            .execute(&mut *gate)
            .await
            .expect("nobody waits there yet");
        die_between_apply_and_commit::<OrderList>(&setup).await;
        die_between_apply_and_commit::<OrderDetails>(&setup).await;
        die_between_apply_and_commit::<CustomerTotals>(&setup).await;
        sqlx::query("SELECT pg_advisory_unlock_all()")
            .execute(&mut *gate)
            .await
            .expect("it is held");
        drop(gate);
        // Their successors find old rows as well as none, so that the next batch inserts and overwrites.
        let (mut list, mut details, mut totals) = (
            setup.worker::<OrderList>().await,
            setup.worker::<OrderDetails>().await,
            setup.worker::<CustomerTotals>().await,
        );
        assert_eq!(drain(&mut list).await, Step::CaughtUp);
        assert_eq!(drain(&mut details).await, Step::CaughtUp);
        assert_eq!(drain(&mut totals).await, Step::CaughtUp);
        setup.kill_replicas().await;
    }
    setup.assert_equals_fold::<OrderList>().await;
    setup.assert_equals_fold::<OrderDetails>().await;
    setup.assert_equals_fold::<CustomerTotals>().await;
}

#[tokio::test]
async fn a_worker_whose_lease_was_taken_changes_nothing_and_stands_by() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(2);
    orders.append(&setup, 300).await;
    let mut zombie = setup.worker::<CustomerTotals>().await;
    assert_eq!(drain(&mut zombie).await, Step::CaughtUp);
    let mut standby = setup.worker::<CustomerTotals>().await;
    assert_eq!(
        standby.step().await.expect("a step"),
        Step::Standby,
        "the lease is held"
    );

    setup.kill_replicas().await;
    let mut rival = setup.worker::<CustomerTotals>().await;
    orders.append(&setup, 300).await;
    assert_eq!(
        rival.step().await.expect("a step"),
        Step::Progressed,
        "the lease is free"
    );
    let before = setup.digest(CustomerTotals::NAME).await;
    assert_eq!(
        zombie.step().await.expect("a step"),
        Step::Progressed,
        "it finds out"
    );
    assert_eq!(setup.digest(CustomerTotals::NAME).await, before);
    assert_eq!(drain(&mut zombie).await, Step::Standby);

    assert_eq!(drain(&mut rival).await, Step::CaughtUp);
    setup.assert_equals_fold::<CustomerTotals>().await;
}

#[tokio::test]
async fn events_that_are_delivered_twice_change_nothing() {
    let setup = Setup::new().await;
    Orders::new(3).append(&setup, 2_000).await;
    twice::<OrderList>(&setup).await;
    twice::<OrderDetails>(&setup).await;
    twice::<CustomerTotals>(&setup).await;
    twice::<EventIndex>(&setup).await;
}

async fn twice<M: ReadModel>(setup: &Setup) {
    let mut worker = setup.worker::<M>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    drop(worker);
    let once = setup.digest(M::NAME).await;
    setup.execute("DELETE FROM read_model.checkpoint_step").await;
    setup.kill_replicas().await;
    assert_eq!(drain(&mut setup.worker::<M>().await).await, Step::CaughtUp);
    assert_eq!(setup.digest(M::NAME).await, once);
    setup.assert_equals_fold::<M>().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_applied_stops_its_projection_in_the_sight_of_operators() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(4);
    orders.append(&setup, 100).await;
    let before = setup.head().await;
    setup.append(vec![unknown_event()]).await;
    orders.append(&setup, 100).await;

    let mut worker = setup.worker::<OrderList>().await;
    eventually("the failure", async || {
        worker.step().await.expect("a step");
        setup
            .value::<bool>("SELECT bool_or(error IS NOT NULL) FROM read_model.checkpoint")
            .await
    })
    .await;
    assert_eq!(
        setup.position(OrderList::NAME).await,
        before,
        "everything before it is applied"
    );
    let (error, position): (String, i64) =
        sqlx::query_as("SELECT error, error_position FROM read_model.checkpoint WHERE error IS NOT NULL")
            .fetch_one(&setup.superuser)
            .await
            .expect("one failure");
    assert!(error.contains("order.exploded"), "{error}");
    assert_eq!(position.cast_unsigned(), before + 1);
}

#[tokio::test]
async fn an_event_of_an_aggregate_that_nobody_knows_flows_past_every_projection() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(6);
    orders.append(&setup, 100).await;
    setup.append(vec![foreign_event()]).await;
    orders.append(&setup, 100).await;

    goes_on::<OrderDetails>(&setup).await;
    goes_on::<OrderList>(&setup).await;
    goes_on::<CustomerTotals>(&setup).await;
    goes_on::<EventIndex>(&setup).await;
}

async fn goes_on<M: ReadModel>(setup: &Setup) {
    assert_eq!(drain(&mut setup.worker::<M>().await).await, Step::CaughtUp);
    setup.assert_equals_fold::<M>().await;
}

#[tokio::test]
async fn a_projection_goes_on_by_itself_when_the_reason_of_its_failure_is_gone() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(5);
    orders.append(&setup, 200).await;
    assert_eq!(
        drain(&mut setup.worker::<OrderList>().await).await,
        Step::CaughtUp
    );
    setup.kill_replicas().await;
    setup
        .execute("UPDATE read_model.order_list_g1 SET version = version + 100")
        .await;
    orders.append(&setup, 200).await;

    let stop = CancellationToken::new();
    let running = tokio::spawn(setup.worker::<OrderList>().await.run(stop.clone()));
    let mut other = setup.worker::<CustomerTotals>().await;
    let is_failed = "SELECT bool_or(error IS NOT NULL) FROM read_model.checkpoint";
    eventually("the failure", async || setup.value::<bool>(is_failed).await).await;
    assert_eq!(drain(&mut other).await, Step::CaughtUp, "other projections go on");
    setup.assert_equals_fold::<CustomerTotals>().await;

    setup
        .execute("UPDATE read_model.order_list_g1 SET version = version - 100 WHERE version > 100")
        .await;
    let head = setup.head().await;
    eventually("the end of the log", async || {
        setup.position(OrderList::NAME).await == head
    })
    .await;
    assert!(!setup.value::<bool>(is_failed).await);
    stop.cancel();
    running.await.expect("no panic").expect("no failure");
    setup.assert_equals_fold::<OrderList>().await;
}

/// A worker of the order list that has failed over an event, because of what is in the rows.
async fn failed_worker(setup: &Setup, process: Context) -> Worker<OrderList> {
    let mut orders = Orders::new(7);
    orders.append(setup, 100).await;
    let worker = || Worker::<OrderList>::new(process.clone(), 0, &Feed::default());
    assert_eq!(drain(&mut worker()).await, Step::CaughtUp);
    setup
        .execute("UPDATE read_model.order_list_g1 SET version = version + 100")
        .await;
    orders.append(setup, 100).await;
    let mut worker = worker();
    eventually("the failure", async || {
        worker.step().await.expect("a step");
        setup
            .value::<bool>("SELECT bool_or(error IS NOT NULL) FROM read_model.checkpoint")
            .await
    })
    .await;
    worker
}

#[tokio::test]
async fn whoever_gives_a_lease_back_forgets_the_backoff_with_it() {
    let setup = Setup::new().await;
    let (duties, process) = setup.process_with_duties().await;
    let mut worker = failed_worker(&setup, process).await;
    let own = duties.borrow().clone();
    duties.send_modify(|duties| duties.live.clear());
    assert_eq!(drain(&mut worker).await, Step::Standby);
    setup
        .execute("UPDATE read_model.order_list_g1 SET version = version - 100 WHERE version > 100")
        .await;
    duties.send_replace(own);
    assert_eq!(drain(&mut worker).await, Step::CaughtUp, "it does not wait");
    setup.assert_equals_fold::<OrderList>().await;
}

#[tokio::test]
async fn a_lease_on_other_tables_begins_without_the_backoff_of_the_last_ones() {
    let setup = Setup::new().await;
    let process = setup.process().await;
    let mut worker = failed_worker(&setup, process.clone()).await;
    let mut connection = process.connector.connect("test").await.expect("a connection");
    let started = registry::start_rebuild(&mut connection, OrderList::NAME, "to see", "a test").await;
    started.expect("a rebuild");
    let mut rebuilder = Rebuilder::<OrderList>::new(process, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), rebuild::Step::Progressed);
    eventually("the loss of the lease", async || {
        worker.step().await.expect("a step");
        worker.position().is_none()
    })
    .await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp, "it does not wait");
    setup.assert_equals_fold::<OrderList>().await;
}

/// Takes the newest events away, as a dump of an earlier moment does.
async fn set_back(setup: &Setup, to: u64) {
    setup
        .execute("ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable")
        .await;
    setup
        .execute(&format!("DELETE FROM event_store.event WHERE position > {to}"))
        .await;
}

#[tokio::test]
async fn after_a_restore_of_the_log_the_tables_are_built_anew() {
    let setup = Setup::new().await;
    Orders::new(6).append(&setup, 300).await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);

    // What a restore to an earlier moment leaves: fewer events, and another generation.
    set_back(&setup, 200).await;
    setup
        .execute("UPDATE event_store.log SET generation = gen_random_uuid()")
        .await;
    drop(worker);
    setup.kill_replicas().await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::Standby);

    let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), rebuild::Step::Progressed);
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 2);
    setup.assert_equals_fold::<OrderList>().await;
}

#[tokio::test]
async fn a_worker_that_reads_the_log_of_another_server_changes_nothing_and_asks_for_new_sessions() {
    let (setup, other) = (Setup::new().await, Setup::new().await);
    Orders::new(6).append(&setup, 100).await;
    Orders::new(7).append(&other, 120).await;
    let context = Context {
        store: other.process().await.store,
        ..setup.process().await
    };
    let reconnects = context.reconnected_at.subscribe();
    let mut worker = Worker::<OrderList>::new(context, 0, &Feed::default());
    assert_eq!(worker.step().await.expect("a lease"), Step::Progressed);
    let error = worker.step().await.expect_err("it is not the log");
    assert!(matches!(error, StepError::OtherLog), "{error:?}");
    assert!(reconnects.has_changed().expect("the worker lives"));
    let rows = "SELECT count(*) FROM read_model.order_list";
    assert_eq!(setup.value::<i64>(rows).await, 0);
}

#[tokio::test]
async fn a_rebuild_after_a_restore_that_fails_is_not_tried_again_and_again() {
    let setup = Setup::new().await;
    Orders::new(6).append(&setup, 100).await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    let fence = "SELECT number FROM read_model.fence WHERE projection = 'order_list' AND generation = 1";
    let before = setup.value::<i64>(fence).await;

    set_back(&setup, 60).await;
    // What no fold can take.
    setup
        .execute("UPDATE event_store.event SET payload = '{}' WHERE position = 50")
        .await;
    setup
        .value::<i32>("SELECT event_store.fork(0, 0, 'a test')")
        .await;
    // Whatever the clock of the server does.
    setup
        .execute("UPDATE event_store.epoch SET opened_at = opened_at + interval '1 hour'")
        .await;
    drop(worker);
    setup.kill_replicas().await;
    let mut worker = setup.worker::<OrderList>().await;
    let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    for _ in 0..4 {
        assert_eq!(drain(&mut worker).await, Step::Standby);
        rebuilder.step().await.expect("a step");
    }
    let rebuilds = "SELECT count(*) FROM read_model.rebuild WHERE projection = 'order_list'";
    assert_eq!(setup.value::<i64>(rebuilds).await, 1);
    let error = "SELECT error FROM read_model.fence WHERE projection = 'order_list' AND generation = 1";
    let error: String = setup.value(error).await;
    assert!(error.starts_with("the rebuild failed: "), "{error}");
    assert_eq!(
        setup.value::<i64>(fence).await,
        before,
        "a lease that is of no use is not acquired"
    );
}

/// The order list is caught up with 100 events, a rebuild of it was started, `happens` to that, and the log is set back before
/// any epoch is opened: the tables are built anew.
async fn built_anew_without_an_epoch(happens: &str) {
    let setup = Setup::new().await;
    Orders::new(6).append(&setup, 100).await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    setup
        .value::<i32>("SELECT read_model.start_rebuild('order_list', 'to see', 'a test')")
        .await;
    setup.execute(happens).await;

    set_back(&setup, 60).await;
    drop(worker);
    setup.kill_replicas().await;
    let mut worker = setup.worker::<OrderList>().await;
    let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    for _ in 0..3 {
        drain(&mut worker).await;
        rebuilder.step().await.expect("a step");
    }
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 3);
    setup.assert_equals_fold::<OrderList>().await;
}

#[tokio::test]
async fn a_rebuild_that_the_restore_has_ended_is_begun_anew() {
    built_anew_without_an_epoch(
        "INSERT INTO read_model.checkpoint_step
         SELECT projection, 2, partition, from_position, position, event_id
         FROM read_model.checkpoint_step WHERE projection = 'order_list' AND generation = 1",
    )
    .await;
}

#[tokio::test]
async fn a_rebuild_that_failed_before_the_restore_keeps_none_from_being_begun_after_it() {
    built_anew_without_an_epoch(
        "UPDATE read_model.rebuild SET status = 'failed', ended_at = now(), error = 'an event'",
    )
    .await;
}

#[tokio::test]
async fn tables_that_stand_before_a_fork_go_on_in_the_next_epoch() {
    let setup = Setup::new().await;
    Orders::new(7).append(&setup, 300).await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);

    // What a promotion without loss leaves: every event, and another epoch from there on.
    let opened = "SELECT event_store.fork(0, 0, 'a test')";
    setup.value::<i32>(opened).await;
    Orders::new(8).append(&setup, 50).await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 1);
    setup.assert_equals_fold::<OrderList>().await;
}

/// Hands a worker what came over the bus, as the feed does.
async fn deliver(setup: &Setup, feed: &Feed, events: &[RecordedEvent]) {
    let log_generation = setup
        .value("SELECT generation FROM event_store.log WHERE partition = 0")
        .await;
    let batch = Batch::decode(log_generation, events.to_vec(), Source::Bus, Instant::now()).expect("events");
    feed.push(Arc::new(batch)).await;
}

/// An event that looks like another one, and is not in the log.
fn forged(event: &RecordedEvent, position: u64) -> RecordedEvent {
    RecordedEvent {
        position,
        event_id: Uuid::now_v7(),
        payload: event.payload.replace("customer-", "nobody-"),
        ..event.clone()
    }
}

#[tokio::test]
async fn what_the_bus_gives_is_applied_only_when_the_log_holds_it() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(9);
    orders.append(&setup, 300).await;
    let feed = Feed::default();
    let mut worker = Worker::<OrderList>::new(setup.process().await, 0, &feed);
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);

    let head = setup.head().await;
    orders.append(&setup, 50).await;
    let log = setup.log().await;
    let new = &log[usize::try_from(head).expect("a small log")..];
    deliver(&setup, &feed, new).await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    setup.assert_equals_fold::<OrderList>().await;

    // In the place of one event, among others that are right.
    let head = setup.head().await;
    orders.append(&setup, 50).await;
    let log = setup.log().await;
    let mut new = log[usize::try_from(head).expect("a small log")..].to_vec();
    let opening = new
        .iter_mut()
        .find(|event| event.stream_version == 1)
        .expect("half of them place an order");
    *opening = forged(opening, opening.position);
    deliver(&setup, &feed, &new).await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    setup.assert_equals_fold::<OrderList>().await;

    // Beyond the head; and one that no fold takes, which is no failure of the projection.
    let head = setup.head().await;
    let (opening, newest) = (&log[0], log.last().expect("events"));
    let order = daybook_domain::ids::OrderId::from_uuid(Uuid::now_v7()).to_string();
    let placed = RecordedEvent {
        stream_id: order,
        ..forged(opening, head + 1)
    };
    let no_fold_takes_it = forged(newest, head + 1);
    for beyond in [placed, no_fold_takes_it] {
        deliver(&setup, &feed, std::slice::from_ref(&beyond)).await;
        eventually("the end of the log", async || {
            let step = worker.step().await.expect("a step");
            if step == Step::Stuck {
                // Nobody but this worker read the feed, which begins anew when it comes back.
                deliver(&setup, &feed, std::slice::from_ref(&beyond)).await;
            }
            step == Step::CaughtUp
        })
        .await;
        assert_eq!(worker.position(), Some(head));
    }
    let is_failed = "SELECT bool_or(error IS NOT NULL) FROM read_model.checkpoint";
    assert!(!setup.value::<bool>(is_failed).await);
    orders.append(&setup, 10).await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    setup.assert_equals_fold::<OrderList>().await;
}

#[tokio::test]
async fn content_that_the_log_does_not_hold_is_not_applied_under_the_id_of_an_event_that_it_holds() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(10);
    orders.append(&setup, 100).await;
    let feed = Feed::default();
    let mut worker = Worker::<OrderList>::new(setup.process().await, 0, &feed);
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);

    let head = setup.head().await;
    orders.append(&setup, 50).await;
    let mut new = setup.log().await[usize::try_from(head).expect("a small log")..].to_vec();
    let mut openings = new.iter_mut().filter(|event| event.stream_version == 1);
    let opening = openings.next().expect("half of them place an order");
    opening.payload = opening.payload.replace("customer-", "nobody-");
    deliver(&setup, &feed, &new).await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    setup.assert_equals_fold::<OrderList>().await;
}

/// Makes the rows of the order list slow to write.
const SLOW_ROWS: &str = "
    CREATE FUNCTION public.be_slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(tg_argv[0]::float);
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow BEFORE INSERT ON read_model.order_list_g1
        FOR EACH ROW EXECUTE FUNCTION public.be_slow(SECONDS)
";

#[tokio::test]
async fn a_batch_that_takes_too_long_is_tried_again_in_parts() {
    let setup = Setup::new().await;
    Orders::new(11).append(&setup, 100).await;
    let orders: i64 = setup
        .value("SELECT count(DISTINCT stream_id) FROM event_store.event WHERE category = 'order'")
        .await;
    // All of them take longer than a step may, half of them do not.
    let slow = SLOW_ROWS.replace("SECONDS", &format!("{}", 10.0 / orders as f64));
    let slow = sqlx::raw_sql(sqlx::AssertSqlSafe(slow))
        .execute(&setup.superuser)
        .await;
    slow.expect("a trigger");

    let stop = CancellationToken::new();
    let running = tokio::spawn(setup.worker::<OrderList>().await.run(stop.clone()));
    eventually("the first part", async || {
        setup.position(OrderList::NAME).await > 0
    })
    .await;
    setup
        .execute("DROP TRIGGER slow ON read_model.order_list_g1")
        .await;
    let head = setup.head().await;
    eventually("the end of the log", async || {
        setup.position(OrderList::NAME).await == head
    })
    .await;
    stop.cancel();
    running.await.expect("no panic").expect("no failure");
    setup.assert_equals_fold::<OrderList>().await;
}
