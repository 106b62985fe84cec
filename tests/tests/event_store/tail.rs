//! What is read for those who follow the log on behalf of several tenants.

use daybook_event_store::{EventStore, NewCommand, TailPage, TailRange};
use daybook_tests::log::PARTITION;
use uuid::Uuid;

use super::{Log, TENANT, command};

const OTHER: Uuid = Uuid::from_u128(2);

fn of(tenant_id: Uuid, command: NewCommand) -> NewCommand {
    NewCommand { tenant_id, ..command }
}

/// Three events of one tenant at 1 to 3, two of another at 4 and 5, and one more of the first.
async fn log() -> anyhow::Result<(Log, EventStore)> {
    let mut log = Log::new().await?;
    let batch = [
        command("a", None, 3),
        of(OTHER, command("b", None, 2)),
        command("c", None, 1),
    ];
    log.append(&batch).await?;
    let store = EventStore::new(log.database.pool("daybook_query").await?);
    Ok((log, store))
}

fn behind(after: u64) -> TailRange {
    TailRange {
        partition: PARTITION,
        after,
        up_to: u64::MAX,
        positions_max: 100,
        bytes_max: 1_024 * 1_024,
    }
}

fn positions(page: &TailPage) -> Vec<u64> {
    page.events.iter().map(|event| event.position).collect()
}

#[tokio::test]
async fn whoever_follows_some_tenants_sees_their_events_alone_and_how_far_was_looked() -> anyhow::Result<()> {
    let (log, store) = log().await?;
    let everything = log.events().await?;
    for (tenants, wanted) in [
        (vec![TENANT, OTHER], vec![1, 2, 3, 4, 5, 6]),
        (vec![TENANT], vec![1, 2, 3, 6]),
        (vec![OTHER], vec![4, 5]),
        (vec![Uuid::from_u128(3)], vec![]),
        (vec![], vec![]),
    ] {
        let page = store.read_tail(behind(0), tenants).await?;
        assert_eq!((positions(&page), page.up_to), (wanted, 6));
        assert_eq!(page.epoch, store.head(PARTITION).await?.epoch);
        for event in &page.events {
            let position = usize::try_from(event.position)?;
            assert_eq!(event, &everything[position - 1], "byte for byte");
        }
    }
    let nothing_new = store.read_tail(behind(6), vec![TENANT]).await?;
    assert_eq!((positions(&nothing_new), nothing_new.up_to), (vec![], 6));
    Ok(())
}

#[tokio::test]
async fn a_page_ends_at_its_positions_at_its_bytes_and_where_it_is_told_to_and_says_so() -> anyhow::Result<()>
{
    let (_log, store) = log().await?;
    let page = async |range| anyhow::Ok(store.read_tail(range, vec![TENANT]).await?);
    let of_two = TailRange {
        positions_max: 2,
        ..behind(2)
    };
    let of_two = page(of_two).await?;
    assert_eq!(
        (positions(&of_two), of_two.up_to),
        (vec![3], 4),
        "another tenant's count"
    );
    let up_to_two = TailRange {
        up_to: 2,
        ..behind(0)
    };
    let up_to_two = page(up_to_two).await?;
    assert_eq!((positions(&up_to_two), up_to_two.up_to), (vec![1, 2], 2));
    let of_one_byte = TailRange {
        bytes_max: 1,
        ..behind(1)
    };
    let of_one_byte = page(of_one_byte).await?;
    assert_eq!(
        (positions(&of_one_byte), of_one_byte.up_to),
        (vec![2], 2),
        "one comes always"
    );
    Ok(())
}
