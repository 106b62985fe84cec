//! What the query role reads, and what it may not.

use std::collections::{BTreeSet, HashMap};

use daybook_read_model::order_list::{self, Filter};
use daybook_read_model::{
    CustomerTotals, EventIndex, Generation, OrderDetails, OrderList, ReadModel, StockLevels, checkpoint,
    customer_totals, each_read_model, event_index, order_details, stock_levels,
};
use sqlx::Executor as _;

use super::Database;
use super::history::{OTHER_TENANT, TENANT, history, order_id, registered};

#[tokio::test]
async fn a_tenant_sees_its_own_rows_and_without_a_tenant_there_are_none() {
    let mut database = Database::create().await;
    let events = history(TENANT, 0..10);
    database.project::<OrderList>(&events).await;
    database.project::<OrderDetails>(&events).await;
    database.project::<CustomerTotals>(&events).await;
    database.project::<EventIndex>(&events).await;
    database
        .project::<StockLevels>(&[registered(TENANT, "TEA")])
        .await;
    let filter = Filter::default();
    let newest = filter.scan(None).expect("an index serves it");
    let every = event_index::Filter::default();
    let oldest = every.scan(None).expect("an index serves it");
    let customers = ["c7".parse().expect("a valid id")];
    let ids: Vec<_> = (0..10).map(order_id).collect();

    for (tenant, expected) in [
        (OTHER_TENANT, [0, 0, 0, 0, 0]),
        (TENANT, [10, 10, 1, 1, 14]),
        (OTHER_TENANT, [0, 0, 0, 0, 0]),
    ] {
        let listed = order_list::list(&database.query, tenant, &filter, newest, None, 100).await;
        let found = order_details::find_many(&database.query, tenant, &ids).await;
        let totals = customer_totals::find(&database.query, tenant, &customers).await;
        let levels = stock_levels::list(&database.query, tenant, "", 100).await;
        let indexed =
            event_index::list_at(&database.query, tenant, &every, oldest, 0..1_000, None, 100).await;
        let seen = [
            listed.expect("a page").len(),
            found.expect("orders").len(),
            totals.expect("totals").len(),
            levels.expect("levels").len(),
            indexed.expect("events").len(),
        ];
        assert_eq!(seen, expected, "{tenant}");

        for view in each_read_model!(M => M::NAME) {
            let statement = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM read_model.{view}"));
            let rows: i64 = sqlx::query_scalar(statement)
                .fetch_one(&database.query)
                .await
                .expect("it may be read");
            assert_eq!(rows, 0, "{view} without a tenant, after a read of {tenant}");
        }
    }
}

#[tokio::test]
async fn every_table_with_a_tenant_is_held_by_row_level_security_and_vacuumed_in_time() {
    let database = Database::create().await;
    let tables: Vec<(String, bool, bool)> = sqlx::query_as(
        "SELECT c.relname::text, c.relrowsecurity AND c.relforcerowsecurity,
                coalesce('autovacuum_vacuum_scale_factor=0.02' = ANY (c.reloptions), false)
         FROM pg_class AS c
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
         WHERE c.relnamespace = 'read_model'::regnamespace AND c.relkind IN ('r', 'p')",
    )
    .fetch_all(&database.query)
    .await
    .expect("the catalogue");
    assert!(tables.len() >= each_read_model!(M => M::NAME).len(), "{tables:?}");
    for (table, is_held, is_vacuumed) in tables {
        assert!(is_held, "{table} shows every tenant's rows");
        assert!(is_vacuumed, "{table} has the usual thresholds");
    }
}

#[tokio::test]
async fn the_query_role_can_change_nothing() {
    let database = Database::create().await;
    for table in each_read_model!(M => format!("{}_g1", M::NAME)) {
        for statement in [
            "DELETE FROM read_model.",
            "TRUNCATE read_model.",
            "DROP TABLE read_model.",
        ] {
            let statement = sqlx::AssertSqlSafe(format!("{statement}{table}"));
            let refused = database
                .query
                .execute(statement)
                .await
                .expect_err("it may only read");
            let code = refused
                .as_database_error()
                .and_then(|error| error.code().map(|code| code.into_owned()));
            assert_eq!(code.as_deref(), Some("42501"), "{table}");
        }
    }
}

#[tokio::test]
async fn details_and_totals_are_found_as_they_were_folded() {
    let mut database = Database::create().await;
    let events = history(TENANT, 0..100);
    let details = database.project::<OrderDetails>(&events).await;
    let totals = database.project::<CustomerTotals>(&events).await;

    let wanted = [order_id(3), order_id(4), "ord_unknown".to_owned()];
    let found = order_details::find_many(&database.query, TENANT, &wanted)
        .await
        .expect("orders");
    let expected: HashMap<_, _> = details
        .into_iter()
        .map(|row| (row.document.order_id.clone(), row))
        .filter(|(id, _)| wanted.contains(id))
        .collect();
    assert_eq!(found, expected);

    let wanted = ["c3", "c4", "nobody"].map(|id| id.parse().expect("a valid id"));
    let customers = customer_totals::find(&database.query, TENANT, &wanted)
        .await
        .expect("totals");
    let ids: Vec<_> = customers
        .iter()
        .map(|customer| customer.customer_id.as_str())
        .collect();
    assert_eq!(ids, ["c3", "c4"]);
    let found = &customers[0].totals;
    let kept = totals
        .iter()
        .find(|row| row.key.customer_id.as_str() == "c3")
        .expect("c3 ordered");
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0].key, found[0].orders_placed, found[0].position),
        (&kept.key, 2, kept.position)
    );
    assert_eq!(i128::from(found[0].ordered_minor), kept.ordered_minor);
}

#[tokio::test]
async fn every_projection_has_a_checkpoint_in_every_partition() {
    let database = Database::create().await;
    let live = checkpoint::live(&database.query).await.expect("checkpoints");
    let names: BTreeSet<_> = live
        .iter()
        .map(|checkpoint| checkpoint.projection.as_str())
        .collect();
    assert_eq!(names, BTreeSet::from(each_read_model!(M => M::NAME)));
    for checkpoint in &live {
        assert_eq!(
            (checkpoint.partition, checkpoint.position, checkpoint.generation),
            (0, 0, Generation::FIRST)
        );
    }
}
