//! Batches that are too much for the memory that their rows may take, or for the time that the database may.

use daybook_event_bus::consume::Source;
use daybook_projector::batch::Decoded;
use daybook_projector::rebuild::{Rebuilder, Step};
use daybook_projector::registry;
use daybook_projector::runner::Runner;
use daybook_read_model::{OrderDetails, ReadModel as _};
use tokio_util::sync::CancellationToken;

use super::commands::append_wide;
use super::{Orders, Setup, hold};

const MIB: usize = 1_024 * 1_024;

/// Applies orders of 500 lines, and then a payment for each, with so much memory for their rows. Returns how many of the
/// payments were applied at a time.
async fn sizes_within(bytes_max: usize) -> Vec<usize> {
    const ORDERS: usize = 40;

    let setup = Setup::new().await;
    append_wide(&setup, ORDERS).await;
    let process = setup.process().await;
    let (connection, lease) = hold::<OrderDetails>(&process).await;
    let mut runner = Runner::<OrderDetails>::new(connection, lease, bytes_max);
    let events = setup.log().await;
    let events: Vec<_> = events
        .iter()
        .map(|event| Decoded::new(event, Source::Log))
        .collect();
    let events: Vec<_> = events.iter().collect();
    let (placed, mut paid) = events.split_at(ORDERS);
    assert_eq!(runner.apply(placed).await.expect("a batch"), ORDERS);
    let mut sizes = Vec::new();
    while !paid.is_empty() {
        let count = runner.apply(paid).await.expect("a batch");
        sizes.push(count);
        paid = &paid[count..];
    }
    setup.assert_equals_fold::<OrderDetails>().await;
    sizes
}

#[tokio::test]
async fn a_batch_ends_where_the_rows_that_it_loads_come_to_their_part_of_memory() {
    let sizes = sizes_within(2 * MIB).await;
    assert!(sizes.iter().all(|size| *size < 8), "{sizes:?}");
}

#[tokio::test]
async fn a_batch_ends_where_the_rows_that_were_kept_come_to_their_part_of_memory() {
    let sizes = sizes_within(8 * MIB).await;
    assert!(sizes.iter().all(|size| *size < 20), "{sizes:?}");
}

/// Has the server end statements that store more than a hundred rows in the tables that are built.
const TOO_SLOW: &str = "
    CREATE FUNCTION read_model.end_large_statements() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT count(*) FROM stored) > 100 THEN
            RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
        END IF;
        RETURN NULL;
    END
    $$;
    CREATE TRIGGER too_slow AFTER INSERT ON read_model.order_details_g2 REFERENCING NEW TABLE AS stored
        FOR EACH STATEMENT EXECUTE FUNCTION read_model.end_large_statements()";

#[tokio::test]
async fn a_rebuild_whose_batches_take_too_long_goes_on_with_smaller_ones() {
    let setup = Setup::new().await;
    Orders::new(19).append(&setup, 1_000).await;
    let process = setup.process().await;
    let mut connection = process.connector.connect("test").await.expect("a connection");
    let started = registry::start_rebuild(&mut connection, OrderDetails::NAME, "to see", "a test").await;
    started.expect("a rebuild");
    sqlx::raw_sql(TOO_SLOW)
        .execute(&setup.superuser)
        .await
        .expect("a trigger");

    let mut rebuilder = Rebuilder::<OrderDetails>::new(process, CancellationToken::new());
    let mut failures = 0;
    while let Err(error) = rebuilder.step().await {
        failures += 1;
        assert!(failures < 50, "{error:?}");
    }
    assert!(failures > 0);
    assert_eq!(rebuilder.step().await.expect("nothing to do"), Step::Idle);
    assert_eq!(setup.live_generation(OrderDetails::NAME).await, 2);
    setup.assert_equals_fold::<OrderDetails>().await;
}
