//! Batches that are too much for the time that the database may take.

use daybook_projector::rebuild::{Rebuilder, Step};
use daybook_projector::registry;
use daybook_read_model::{OrderDetails, ReadModel as _};
use tokio_util::sync::CancellationToken;

use super::{Orders, Setup};

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
