//! Digests of events: those that the log makes are those that a reader makes.

use anyhow::ensure;
use daybook_event_store::{RecordedEvent, digest_of_all};
use daybook_tests::log;
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use super::{Log, TENANT};

/// Many tenants with a few events each, the newest of which are of the last ones, and statistics of them.
const MANY_TENANTS: &str = "
    INSERT INTO event_store.tenant (tenant_id, name, partition)
    SELECT gen_random_uuid(), 'many-' || n, 0 FROM generate_series(1, 10000) AS n;
    INSERT INTO event_store.event (
        partition, position, tenant_number, stream_version, recorded_at, schema_version, event_id, category, stream_id,
        event_type, payload, metadata)
    SELECT 0, n, t.first + n % 10000, 1, clock_timestamp(), 1, gen_random_uuid(), 'order', 'ord_' || n, 'order.placed',
           '{}', '{}'
    FROM generate_series(1, 200000) AS n
    CROSS JOIN (SELECT min(number) AS first FROM event_store.tenant WHERE name LIKE 'many-%') AS t;
    ANALYZE event_store.tenant;
    ANALYZE event_store.event";

/// How many tenants this session has read in this transaction, by whatever index.
const TENANTS_READ: &str = "
    SELECT sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::bigint
    FROM pg_index AS i WHERE i.indrelid = 'event_store.tenant'::regclass";

/// What the log makes of its events behind a position and up to another.
async fn of_log(projector: &PgPool, after: u64, to: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let digest = sqlx::query_scalar("SELECT event_store.digest(0, $1, $2)");
    let digest = digest.bind(after.cast_signed()).bind(to.cast_signed());
    Ok(digest.fetch_one(projector).await?)
}

fn of_all(events: &[RecordedEvent]) -> Vec<u8> {
    let digests: Vec<_> = events.iter().map(RecordedEvent::digest).collect();
    digest_of_all(&digests).to_vec()
}

#[tokio::test]
async fn a_reader_makes_the_digest_that_the_log_makes() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    for (tenant, stream) in [(TENANT, "ord_1"), (Uuid::from_u128(2), "Zoë's % \u{1f600} order")] {
        let payloads = [
            r#"{"b": 1,  "a": "ü\u00fc", "a": null}"#.to_owned(),
            format!("[\"{}\"]", "x".repeat(100_000)),
        ];
        let events = payloads.into_iter().map(log::event).collect();
        log.append(&[log::command(tenant, stream, None, events)]).await?;
    }
    let events = log.events().await?;
    let projector = log.database.pool("daybook_projector").await?;
    for (after, to) in [(0, 4), (0, 1), (1, 3), (3, 4)] {
        let range = usize::try_from(after)?..usize::try_from(to)?;
        ensure!(
            of_log(&projector, after, to).await? == Some(of_all(&events[range])),
            "{after}..{to}"
        );
    }
    ensure!(
        of_log(&projector, 3, 5).await? == Some(of_all(&events[3..])),
        "there is no more"
    );
    ensure!(of_log(&projector, 4, 5).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn whatever_is_changed_of_an_event_changes_its_digest() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[super::command("ord_1", None, 1)]).await?;
    let event = log.events().await?.remove(0);
    let changed = |change: fn(&mut RecordedEvent)| {
        let mut other = event.clone();
        change(&mut other);
        other.digest()
    };
    let others = [
        changed(|event| event.event_id = Uuid::nil()),
        changed(|event| event.tenant_id = Uuid::from_u128(2)),
        changed(|event| event.category.push('s')),
        changed(|event| event.stream_id.push('1')),
        changed(|event| event.stream_version += 1),
        changed(|event| event.event_type.push('2')),
        changed(|event| event.schema_version += 1),
        changed(|event| event.recorded_at += std::time::Duration::from_micros(1)),
        changed(|event| event.metadata = "{}".into()),
        changed(|event| event.payload.push(' ')),
    ];
    ensure!(!others.contains(&event.digest()));
    Ok(())
}

#[tokio::test]
async fn a_digest_looks_up_the_tenants_of_its_events_and_no_others() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let superuser = log.database.superuser().await?;
    sqlx::raw_sql(MANY_TENANTS).execute(&superuser).await?;
    let mut projector = PgConnection::connect(&log.database.url("daybook_projector")).await?;
    let mut transaction = projector.begin().await?;
    let digest: Vec<u8> = sqlx::query_scalar("SELECT event_store.digest(0, 199995, 200000)")
        .fetch_one(&mut *transaction)
        .await?;
    assert_eq!(digest.len(), 32);
    let read: i64 = sqlx::query_scalar(TENANTS_READ)
        .fetch_one(&mut *transaction)
        .await?;
    ensure!(read <= 5, "{read} tenants were read for five events");
    Ok(())
}
