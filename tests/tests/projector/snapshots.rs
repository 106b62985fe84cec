//! What a batch and a read cost after thousands of batches under a snapshot that somebody holds, like a backup: counted in
//! blocks of tables and indexes, because time depends on the machine.

use daybook_event_bus::consume::Source;
use daybook_projector::batch::Decoded;
use daybook_projector::runner::Runner;
use daybook_read_model::{CustomerTotals, ReadModel, StockLevels};
use sqlx::Connection as _;
use uuid::Uuid;

use super::{Orders, Setup, append_stock, eventually, hold};

/// Batches that are counted, before and after.
const COUNTED: usize = 100;

/// Batches between.
const BATCHES: usize = 3_000;

/// Applies a batch for each event, and counts the blocks that a batch touches.
async fn blocks_per_batch<M: ReadModel>(setup: &Setup, events: &[Decoded]) -> i64 {
    let before = blocks(setup).await;
    let (connection, lease) = hold::<M>(&setup.process().await).await;
    let mut runner = Runner::<M>::new(connection, lease, 10_000);
    for event in events {
        let applied = runner.apply(&[event]).await.expect("a batch");
        assert_eq!(applied, 1);
    }
    runner.release().await.expect("the lease is released");
    // A session reports what it has read when it ends, if not before.
    eventually("the end of the session", async || {
        let sessions = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'daybook-projector test'";
        setup.value::<i64>(sessions).await == 0
    })
    .await;
    (blocks(setup).await - before) / i64::try_from(events.len()).expect("a small number")
}

/// The blocks of read models, checkpoints and the log that have been touched.
async fn blocks(setup: &Setup) -> i64 {
    let touched =
        "SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))::bigint
                   FROM pg_statio_user_tables";
    setup.value(touched).await
}

/// The blocks that a statement touches when it is executed for the second time.
async fn blocks_of(setup: &Setup, statement: &str) -> i64 {
    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let explained = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}");
    let mut touched = 0;
    for _ in 0..2 {
        let explaining = sqlx::query_scalar(sqlx::AssertSqlSafe(explained.as_str()));
        let plan: serde_json::Value = explaining.fetch_one(&mut *connection).await.expect("a plan");
        let plan = &plan[0]["Plan"];
        let count = |name: &str| plan[name].as_i64().expect("a number");
        assert_eq!(count("Actual Rows"), 1);
        touched = count("Shared Hit Blocks") + count("Shared Read Blocks");
    }
    touched
}

/// Applies batches to a read model before, during and after thousands under a held snapshot, and compares. Each of `reads` is
/// a probe for a row that thousands of dead ones lie behind.
async fn assert_no_dearer<M: ReadModel>(setup: &Setup, reads: &[&str]) {
    // Nothing but batches is to be counted.
    for table in [&format!("{}_g1", M::NAME), "checkpoint_step", "fence"] {
        let alter = format!("ALTER TABLE read_model.{table} SET (autovacuum_enabled = off)");
        setup.execute(&alter).await;
    }
    let log: Vec<_> = setup
        .log()
        .await
        .iter()
        .map(|event| Decoded::new(event, Source::Log))
        .collect();
    let (first, rest) = log.split_at(COUNTED);
    let (many, rest) = rest.split_at(BATCHES);

    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let mut holder = connection.begin().await.expect("a transaction");
    let hold = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
                SET LOCAL idle_in_transaction_session_timeout = 0;
                SELECT count(*) FROM read_model.checkpoint_step";
    sqlx::raw_sql(hold)
        .execute(&mut *holder)
        .await
        .expect("a snapshot");

    let batch_before = blocks_per_batch::<M>(setup, first).await;
    let mut reads_before = Vec::new();
    for read in reads {
        reads_before.push(blocks_of(setup, read).await);
    }
    blocks_per_batch::<M>(setup, many).await;
    // Statistics count one live row, which makes reading the whole table look cheap.
    setup.execute("ANALYZE").await;

    let batch = blocks_per_batch::<M>(setup, &rest[..COUNTED]).await;
    // An index of thousands of entries is a level higher than one of a hundred.
    assert!(
        batch <= batch_before * 3 / 2,
        "a batch touches {batch} blocks, before it were {batch_before}"
    );
    for (read, before) in reads.iter().zip(reads_before) {
        let now = blocks_of(setup, read).await;
        assert!(
            now <= before + 4,
            "{read} touches {now} blocks, before it were {before}"
        );
    }
    holder.rollback().await.expect("it was only held");
}

#[tokio::test]
async fn thousands_of_batches_under_a_held_snapshot_make_neither_batches_nor_reads_of_totals_dearer() {
    let setup = Setup::new().await;
    let mut orders = Orders::of(1, 41);
    while (setup.head().await as usize) < BATCHES + 2 * COUNTED {
        orders.append(&setup, 500).await;
    }
    let reads = [
        "SELECT position FROM read_model.checkpoint WHERE projection = 'customer_totals'",
        "SELECT * FROM read_model.find_customer_totals('00000000-0000-0000-0000-00000000002a', 'customer-0')",
    ];
    assert_no_dearer::<CustomerTotals>(&setup, &reads).await;
}

#[tokio::test]
async fn a_busy_stock_item_under_a_held_snapshot_makes_neither_batches_nor_reads_of_levels_dearer() {
    let setup = Setup::new().await;
    append_stock(&setup, Uuid::from_u128(42), BATCHES + 2 * COUNTED).await;
    let reads = [
        "SELECT l.* FROM event_store.event AS e,
                read_model.find_stock_level('00000000-0000-0000-0000-00000000002a', e.stream_id) AS l
         WHERE e.partition = 0 AND e.position = 1",
        "SELECT * FROM read_model.list_stock_levels('00000000-0000-0000-0000-00000000002a', '', 10)",
    ];
    assert_no_dearer::<StockLevels>(&setup, &reads).await;
}
