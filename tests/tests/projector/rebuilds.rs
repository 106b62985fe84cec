//! Rebuilds on a real database: under load, killed half-way and over the indexes, asked for twice, and in vain.

use std::time::Duration;

use daybook_projector::checkpoint::{self, Claim, Key, Lease};
use daybook_projector::rebuild::{Rebuilder, Step};
use daybook_projector::registry::{self, StartError};
use daybook_projector::worker::Context;
use daybook_projector::{replica, worker};
use daybook_read_model::{CustomerTotals, EventIndex, Generation, OrderDetails, OrderList, ReadModel};
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Orders, Setup, drain, eventually, foreign_event, unknown_event};

async fn request<M: ReadModel>(setup: &Setup) -> Result<i32, StartError> {
    let context = setup.process().await;
    let mut connection = context.connector.connect("test").await.expect("a connection");
    let started = registry::start_rebuild(&mut connection, M::NAME, "to see", "a test").await;
    started.map(|generation| generation.get())
}

/// The definitions of the order list's indexes, as they would be in the first generation.
async fn indexes(setup: &Setup, generation: i32) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT replace(indexdef, tablename, 'order_list_g1') FROM pg_indexes
         WHERE schemaname = 'read_model' AND tablename = 'order_list_g' || $1 ORDER BY 1",
    )
    .bind(generation)
    .fetch_all(&setup.superuser)
    .await
    .expect("the indexes")
}

async fn kill_rebuild(setup: &Setup) {
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name LIKE '%rebuild%'";
    assert!(setup.value::<i64>(kill).await > 0);
}

async fn status(setup: &Setup) -> String {
    setup.value("SELECT status FROM read_model.rebuild").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_load_is_equal_to_the_fold_and_never_takes_readers_back() {
    let setup = Setup::new().await;
    under_load::<OrderList>(&setup, 11).await;
    under_load::<CustomerTotals>(&setup, 12).await;
}

async fn under_load<M: ReadModel>(setup: &Setup, seed: u64) {
    let mut orders = Orders::new(seed);
    orders.append(setup, 3_000).await;
    let stop = CancellationToken::new();
    let worker = tokio::spawn(setup.worker::<M>().await.run(stop.clone()));
    request::<M>(setup).await.expect("a rebuild");

    let live = CancellationToken::new();
    let load = async {
        while !live.is_cancelled() {
            orders.append(setup, 50).await;
        }
    };
    let readers = async {
        let mut seen = 0;
        while !live.is_cancelled() {
            let position = setup.position(M::NAME).await;
            assert!(position >= seen, "readers went from {seen} back to {position}");
            seen = position;
        }
    };
    let rebuild = async {
        let mut rebuilder = Rebuilder::<M>::new(setup.process().await, CancellationToken::new());
        assert_eq!(rebuilder.step().await.expect("a step"), Step::Progressed);
        live.cancel();
    };
    tokio::join!(load, readers, rebuild);

    assert_eq!(setup.live_generation(M::NAME).await, 2);
    let head = setup.head().await;
    eventually("the end of the log", async || {
        setup.position(M::NAME).await == head
    })
    .await;
    stop.cancel();
    worker.await.expect("no panic").expect("no failure");
    setup.assert_equals_fold::<M>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_half_way_goes_on_where_it_was_and_is_equal_to_the_live_tables() {
    let setup = Setup::new().await;
    Orders::new(13).append(&setup, 60_000).await;
    let mut worker = setup.worker::<OrderDetails>().await;
    assert_eq!(drain(&mut worker).await, worker::Step::CaughtUp);
    request::<OrderDetails>(&setup).await.expect("a rebuild");

    let context = setup.process().await;
    let mut rebuilder = Rebuilder::<OrderDetails>::new(context.clone(), CancellationToken::new());
    let position = "SELECT position FROM read_model.checkpoint WHERE generation = 2";
    let kill = async {
        eventually("a part of the fill", async || {
            setup.value::<i64>(position).await > 0
        })
        .await;
        kill_rebuild(&setup).await;
    };
    let (killed, ()) = tokio::join!(rebuilder.step(), kill);
    killed.expect_err("its sessions are gone");
    let reached: i64 = setup.value(position).await;
    assert!(
        reached > 0 && reached.cast_unsigned() < setup.head().await,
        "half-way, not at {reached}"
    );
    assert_eq!(setup.live_generation(OrderDetails::NAME).await, 1);

    // The same process, and so the same owner of the leases.
    let mut again = Rebuilder::<OrderDetails>::new(context, CancellationToken::new());
    assert_eq!(again.step().await.expect("a step"), Step::Progressed);
    assert_eq!(setup.live_generation(OrderDetails::NAME).await, 2);
    assert_eq!(
        setup.digest("order_details_g2").await,
        setup.digest("order_details_g1").await
    );
    setup.assert_equals_fold::<OrderDetails>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_over_the_indexes_makes_the_missing_ones_when_its_lease_is_acquired_again() {
    let setup = Setup::new().await;
    Orders::new(15).append(&setup, 1_000).await;
    drain(&mut setup.worker::<OrderList>().await).await;
    request::<OrderList>(&setup).await.expect("a rebuild");
    let all = indexes(&setup, 1).await;

    let context = setup.process().await;
    let mut rebuilder = Rebuilder::<OrderList>::new(context.clone(), CancellationToken::new());
    // Whoever makes the last index waits to hear whether its name is taken.
    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let mut obstacle = connection.begin().await.expect("a transaction");
    let take_name = "SET LOCAL idle_in_transaction_session_timeout = 0;
                     CREATE TABLE read_model.order_list_g2_placed_at ()";
    let taken = sqlx::raw_sql(take_name).execute(&mut *obstacle).await;
    taken.expect("the name is free");
    let kill = async {
        eventually("all the indexes but one", async || {
            indexes(&setup, 2).await.len() == all.len() - 1
        })
        .await;
        kill_rebuild(&setup).await;
    };
    let (killed, ()) = tokio::join!(rebuilder.step(), kill);
    killed.expect_err("its sessions are gone");
    obstacle.rollback().await.expect("the name is free again");
    assert_eq!(indexes(&setup, 2).await.len(), all.len() - 1);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 1);

    // The same process, and so the same owner of the leases.
    let mut again = Rebuilder::<OrderList>::new(context, CancellationToken::new());
    assert_eq!(again.step().await.expect("a step"), Step::Progressed);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 2);
    assert_eq!(indexes(&setup, 2).await, all);
    setup.assert_equals_fold::<OrderList>().await;
}

/// A deploy may replace the statements that make them while they are made by number.
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_does_not_count_as_filled_without_all_of_its_indexes() {
    let setup = Setup::new().await;
    request::<OrderList>(&setup).await.expect("a rebuild");
    setup
        .execute("SELECT read_model.finish_fill('order_list', 2)")
        .await;
    assert_eq!(indexes(&setup, 2).await, indexes(&setup, 1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_is_given_up_over_the_indexes_when_another_replica_has_taken_it() {
    let setup = Setup::new().await;
    Orders::new(16).append(&setup, 100).await;
    request::<OrderList>(&setup).await.expect("a rebuild");
    // Whoever writes to a table holds up the making of its indexes.
    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let mut writer = connection.begin().await.expect("a transaction");
    let hold = "SET LOCAL idle_in_transaction_session_timeout = 0;
                LOCK TABLE read_model.order_list_g2 IN ROW EXCLUSIVE MODE";
    sqlx::raw_sql(hold).execute(&mut *writer).await.expect("a lock");
    let process = setup.process().await;
    let rebuilding = tokio::spawn(async move {
        Rebuilder::<OrderList>::new(process, CancellationToken::new())
            .step()
            .await
    });
    eventually("two connections that wait to make an index", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'read_model.order_list_g2'::regclass AND NOT granted";
        setup.value::<i64>(waiting).await == 2
    })
    .await;
    setup.kill_replicas().await;
    let rival = setup.process().await;
    let (mut connection, held) = hold_rebuilt(&rival).await;

    rebuilding
        .await
        .expect("no panic")
        .expect_err("it has lost its lease");
    writer.rollback().await.expect("the lock is given back");
    let mut again = Rebuilder::<OrderList>::new(rival, CancellationToken::new());
    assert_eq!(again.step().await.expect("a step"), Step::Progressed);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 2);
    let late = checkpoint::claim_rebuilt(&mut connection, held.key, held.owner).await;
    assert_eq!(
        late.expect("an answer"),
        Claim::Refused,
        "it is no rebuild any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_claimed_while_a_rebuild_goes_live_is_a_lease_on_the_tables_that_are_live_afterwards()
{
    let setup = Setup::new().await;
    Orders::new(17).append(&setup, 100).await;
    request::<OrderList>(&setup).await.expect("a rebuild");
    setup
        .execute("UPDATE read_model.rebuild SET indexed_at = now()")
        .await;
    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let mut switch = connection.begin().await.expect("a transaction");
    let going = "SET LOCAL idle_in_transaction_session_timeout = 0;
                 SELECT read_model.go_live('order_list', 2)";
    sqlx::raw_sql(going)
        .execute(&mut *switch)
        .await
        .expect("a switch");

    let mut worker = setup.worker::<OrderList>().await;
    let claiming = tokio::spawn(async move {
        worker.step().await.expect("a step");
        worker
    });
    eventually("a claim that waits for the switch", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        setup.value::<i64>(waits).await == 1
    })
    .await;
    switch.commit().await.expect("a commit");

    let mut worker = claiming.await.expect("no panic");
    assert_eq!(drain(&mut worker).await, worker::Step::CaughtUp);
    assert_eq!(setup.live_generation(OrderList::NAME).await, 2);
    setup.assert_equals_fold::<OrderList>().await;
}

#[tokio::test]
async fn a_lease_is_to_be_had_soon_after_a_rebuilder_was_stopped_in_its_switch() {
    let setup = Setup::new().await;
    let process = setup.process().await;
    let connected = process.connector.connect_for_long("test").await;
    let mut stopped = connected.expect("a connection");
    let mut switch = stopped.begin().await.expect("a transaction");
    let held = registry::hold_live(&mut switch, OrderList::NAME).await;
    assert_eq!(held.expect("the live tables"), [(0, 0)]);

    let mut connection = process.connector.connect("test").await.expect("a connection");
    let patience = sqlx::query("SET lock_timeout = '4s'");
    patience.execute(&mut connection).await.expect("a setting");
    let owner = process.duties.borrow().owner;
    let claimed = checkpoint::claim_live(&mut connection, OrderList::NAME, 0, owner).await;
    assert!(matches!(
        claimed.expect("it is let go of in time"),
        Claim::Held(_)
    ));
    drop(switch);
}

#[tokio::test]
async fn one_rebuild_of_a_projection_runs_at_a_time() {
    let setup = Setup::new().await;
    assert_eq!(request::<OrderList>(&setup).await.expect("a rebuild"), 2);
    assert!(matches!(
        request::<OrderList>(&setup).await,
        Err(StartError::Running)
    ));
    request::<CustomerTotals>(&setup)
        .await
        .expect("another projection is another matter");

    let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), Step::Progressed);
    assert_eq!(rebuilder.step().await.expect("a step"), Step::Idle);
    assert_eq!(request::<OrderList>(&setup).await.expect("the next one"), 3);
}

#[tokio::test]
async fn a_rebuild_that_meets_an_event_that_cannot_be_applied_fails_and_leaves_the_live_tables() {
    let setup = Setup::new().await;
    Orders::new(14).append(&setup, 100).await;
    assert_eq!(
        drain(&mut setup.worker::<OrderList>().await).await,
        worker::Step::CaughtUp
    );
    let before = setup.digest(OrderList::NAME).await;
    setup.append(vec![unknown_event()]).await;
    request::<OrderList>(&setup).await.expect("a rebuild");

    let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), Step::Progressed);
    assert_eq!(status(&setup).await, "failed");
    assert_eq!(setup.live_generation(OrderList::NAME).await, 1);
    assert_eq!(setup.digest(OrderList::NAME).await, before);
    let left: i64 = setup
        .value("SELECT count(*) FROM pg_class WHERE relname = 'order_list_g2'")
        .await;
    assert_eq!(left, 0, "its tables are thrown away");
}

/// Takes the lease on the second generation of the order list, which is to be had.
async fn hold_rebuilt(process: &Context) -> (PgConnection, Lease) {
    let key = Key {
        projection: OrderList::NAME,
        tables: Generation::new(2).expect("a positive number"),
        partition: 0,
    };
    let owner = process.duties.borrow().owner;
    let mut connection = process.connector.connect("test").await.expect("a connection");
    let claimed = checkpoint::claim_rebuilt(&mut connection, key, owner).await;
    match claimed.expect("an answer") {
        Claim::Held(lease) => (connection, lease),
        refused => panic!("{refused:?}"),
    }
}

#[tokio::test]
async fn whoever_has_lost_a_rebuild_does_not_end_it() {
    let setup = Setup::new().await;
    Orders::new(18).append(&setup, 100).await;
    request::<OrderList>(&setup).await.expect("a rebuild");
    let (mut zombie, lost) = hold_rebuilt(&setup.process().await).await;
    setup.kill_replicas().await;
    let (mut connection, held) = hold_rebuilt(&setup.process().await).await;

    let ended = registry::fail_rebuild(&mut zombie, &lost, Some("an event")).await;
    assert!(!ended.expect("an answer"));
    assert_eq!(status(&setup).await, "running");
    let tables: i64 = setup
        .value("SELECT count(*) FROM pg_class WHERE relname = 'order_list_g2'")
        .await;
    assert_eq!(tables, 1, "another replica fills it");

    let ended = registry::fail_rebuild(&mut connection, &held, Some("an event")).await;
    assert!(ended.expect("an answer"));
    assert_eq!(status(&setup).await, "failed");
}

/// The server would end that after a minute, as it does with whatever hangs.
const SLEEP: &str = "
    CREATE FUNCTION public.sleep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(600);
        RETURN NULL;
    END $$;
    CREATE TRIGGER sleep AFTER INSERT ON read_model.order_list_g2 EXECUTE FUNCTION public.sleep();
";

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_came_back_as_another_one_does_not_wait_for_what_it_had_begun() {
    let setup = Setup::new().await;
    Orders::new(19).append(&setup, 100).await;
    request::<OrderList>(&setup).await.expect("a rebuild");
    sqlx::raw_sql(SLEEP)
        .execute(&setup.superuser)
        .await
        .expect("a trigger");
    let (duties, process) = setup.process_with_duties().await;
    let rebuilder = Rebuilder::<OrderList>::new(process, CancellationToken::new());
    let rebuilding = tokio::spawn(rebuilder.run());
    eventually("a batch that hangs", async || {
        let hangs = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event = 'PgSleep'";
        setup.value::<i64>(hangs).await == 1
    })
    .await;

    setup.kill_replicas().await;
    let returned = Uuid::now_v7();
    setup.join(returned).await;
    duties.send_modify(|duties| duties.owner = returned);
    let claimed = eventually("a new lease", async || {
        let owner = "SELECT owner FROM read_model.fence WHERE projection = 'order_list' AND generation = 2";
        setup.value::<Option<Uuid>>(owner).await == Some(returned)
    });
    tokio::time::timeout(Duration::from_secs(30), claimed)
        .await
        .expect("before the server ends what hangs");
    rebuilding.abort();
}

#[tokio::test]
async fn a_rebuild_passes_an_event_of_an_aggregate_that_nobody_knows() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(15);
    orders.append(&setup, 100).await;
    setup.append(vec![foreign_event()]).await;
    orders.append(&setup, 100).await;
    request::<OrderList>(&setup).await.expect("a rebuild");

    let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), Step::Progressed);
    assert_eq!(status(&setup).await, "done");
    assert_eq!(setup.live_generation(OrderList::NAME).await, 2);
    setup.assert_equals_fold::<OrderList>().await;
}

#[tokio::test]
async fn what_this_program_cannot_decode_is_in_the_event_index_like_any_other_event_live_and_rebuilt() {
    let setup = Setup::new().await;
    let mut orders = Orders::new(16);
    orders.append(&setup, 100).await;
    setup.append(vec![foreign_event()]).await;
    setup.append(vec![unknown_event()]).await;
    orders.append(&setup, 100).await;
    assert_eq!(
        drain(&mut setup.worker::<EventIndex>().await).await,
        worker::Step::CaughtUp
    );
    let indexed =
        "SELECT count(*), count(*) FILTER (WHERE event_type = 'order.exploded') FROM read_model.event_index";
    let indexed: (i64, i64) = sqlx::query_as(indexed)
        .fetch_one(&setup.superuser)
        .await
        .expect("two numbers");
    assert_eq!(indexed, (setup.head().await.cast_signed(), 2));

    let live = setup.digest(EventIndex::NAME).await;
    request::<EventIndex>(&setup).await.expect("a rebuild");
    let mut rebuilder = Rebuilder::<EventIndex>::new(setup.process().await, CancellationToken::new());
    assert_eq!(rebuilder.step().await.expect("a step"), Step::Progressed);
    assert_eq!(status(&setup).await, "done");
    assert_eq!(setup.digest(EventIndex::NAME).await, live);
}

#[tokio::test]
async fn the_tables_before_the_last_are_dropped_and_the_last_are_kept() {
    let setup = Setup::new().await;
    for _ in 0..2 {
        request::<OrderList>(&setup).await.expect("a rebuild");
        let mut rebuilder = Rebuilder::<OrderList>::new(setup.process().await, CancellationToken::new());
        assert_eq!(rebuilder.step().await.expect("a step"), Step::Progressed);
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relname ~ '^order_list_g[0-9]+$' ORDER BY relname",
    )
    .fetch_all(&setup.superuser)
    .await
    .expect("the tables");
    assert_eq!(tables, ["order_list_g2", "order_list_g3"]);
}

#[tokio::test]
async fn every_statement_is_understood_by_the_migrated_schema() {
    use sqlx::Executor as _;
    use sqlx::SqlSafeStr as _;

    let setup = Setup::new().await;
    let context = setup.process().await;
    let mut connection = context.connector.connect("test").await.expect("a connection");
    let statements = daybook_projector::checkpoint::STATEMENTS
        .iter()
        .chain(registry::STATEMENTS)
        .chain(replica::STATEMENTS);
    for (name, statement) in statements {
        let prepared = connection.prepare(statement.into_sql_str()).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
    }
}
