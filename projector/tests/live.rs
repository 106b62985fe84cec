//! Live projections on a real database: killed, superseded, delivered to twice, poisoned, and with a restored log.

mod support;

use daybook_projector::rebuild::{self, Rebuilder};
use daybook_projector::worker::Step;
use daybook_read_model::{CustomerTotals, OrderDetails, OrderList, ReadModel};
use tokio_util::sync::CancellationToken;

use support::{Orders, Setup, drain, eventually, unknown_event};

/// Ends the session of a worker while it is in the middle of something.
async fn kill_at_work(setup: &Setup, projection: &str) {
    eventually("a worker at work", async || {
        let killed: i64 = setup
            .value(&format!(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'daybook-projector {projection}/0'
                   AND state IN ('active', 'idle in transaction')
                   AND (xact_start IS NOT NULL OR state = 'idle in transaction')"
            ))
            .await;
        killed > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_a_hundred_times_in_the_middle_of_a_batch_end_with_the_fold() {
    let setup = Setup::new().await;
    let stop = CancellationToken::new();
    let workers = [
        tokio::spawn(setup.worker::<OrderList>().await.run(stop.clone())),
        tokio::spawn(setup.worker::<OrderDetails>().await.run(stop.clone())),
        tokio::spawn(setup.worker::<CustomerTotals>().await.run(stop.clone())),
    ];
    let mut orders = Orders::new(1);
    orders.append(&setup, 500).await;

    let killed = CancellationToken::new();
    let load = async {
        while !killed.is_cancelled() {
            orders.append(&setup, 20).await;
        }
    };
    let kills = async {
        for kill in 0..100 {
            let projection = [OrderList::NAME, OrderDetails::NAME, CustomerTotals::NAME][kill % 3];
            kill_at_work(&setup, projection).await;
            let failures = "SELECT count(*) FROM read_model.checkpoint WHERE error IS NOT NULL";
            assert_eq!(
                setup.value::<i64>(failures).await,
                0,
                "rows and checkpoint have parted"
            );
        }
        killed.cancel();
    };
    tokio::join!(load, kills);

    let head = setup.head().await;
    for projection in [OrderList::NAME, OrderDetails::NAME, CustomerTotals::NAME] {
        eventually("the end of the log", async || {
            setup.position(projection).await == head
        })
        .await;
    }
    stop.cancel();
    for worker in workers {
        worker.await.expect("no panic").expect("no failure");
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
    let mut rival = setup.worker::<CustomerTotals>().await;
    assert_eq!(
        rival.step().await.expect("a step"),
        Step::Standby,
        "the lease is held"
    );

    setup
        .execute("UPDATE read_model.checkpoint SET lease_until = '-infinity'")
        .await;
    orders.append(&setup, 300).await;
    assert_eq!(
        rival.step().await.expect("a step"),
        Step::Progressed,
        "the lease has run out"
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
}

async fn twice<M: ReadModel>(setup: &Setup) {
    let mut worker = setup.worker::<M>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    drop(worker);
    let once = setup.digest(M::NAME).await;
    let again = "UPDATE read_model.checkpoint SET position = 0, owner = NULL, lease_until = '-infinity'";
    setup.execute(again).await;
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
async fn a_projection_goes_on_by_itself_when_the_reason_of_its_failure_is_gone() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(5);
    orders.append(&setup, 200).await;
    assert_eq!(
        drain(&mut setup.worker::<OrderList>().await).await,
        Step::CaughtUp
    );
    setup
        .execute("UPDATE read_model.checkpoint SET lease_until = '-infinity'")
        .await;
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

#[tokio::test]
async fn after_a_restore_of_the_log_the_tables_are_built_anew() {
    let setup = Setup::new().await;
    Orders::new(6).append(&setup, 300).await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);

    // What a restore to an earlier moment leaves: fewer events, and another generation.
    setup
        .execute("ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable")
        .await;
    setup
        .execute("DELETE FROM event_store.event WHERE position > 200")
        .await;
    setup
        .execute("UPDATE event_store.log SET head = 200, generation = gen_random_uuid()")
        .await;
    drop(worker);
    setup
        .execute("UPDATE read_model.checkpoint SET lease_until = '-infinity'")
        .await;
    let mut worker = setup.worker::<OrderList>().await;
    assert_eq!(drain(&mut worker).await, Step::Standby);

    let rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), rebuild::Step::Progressed);
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 2);
    setup.assert_equals_fold::<OrderList>().await;
}
