//! What payloads of events look like, as the query service tells it.

use std::collections::BTreeSet;

use daybook_domain::aggregates::AGGREGATES;
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::Stack;

#[tokio::test]
async fn every_version_of_every_type_has_a_schema_and_what_histories_show_is_in_one_of_them()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let order_id = new_order_id();
    caller.place(&order_id, "customer-1").await?;
    let answer = caller.get("/v1/event-types").await?;
    let list = answer.json();
    let key = |item: &serde_json::Value| {
        (
            item["event_type"].clone().to_string(),
            item["schema_version"].as_u64(),
        )
    };
    let described: BTreeSet<_> = list["data"].as_array().into_iter().flatten().map(key).collect();
    let versions: u32 = AGGREGATES
        .iter()
        .flat_map(|kind| kind.schemas)
        .map(|(_, current)| current)
        .sum();
    assert_eq!(described.len(), usize::try_from(versions)?);
    let history = caller.get(&format!("/v1/orders/{order_id}/events")).await?.json();
    let recorded = &history["data"][0];
    assert!(described.contains(&key(recorded)), "{recorded}");

    let tag = answer.header("etag");
    let again = caller
        .get_as(
            &stack.tenant.auditor_key,
            "/v1/event-types",
            &[("if-none-match", tag)],
        )
        .await?;
    assert_eq!((again.status, again.body.len()), (304, 0));
    Ok(())
}
