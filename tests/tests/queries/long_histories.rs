//! Histories that are folded anew, and are long: that is the work of whoever asks, and costs nobody else.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::ids::{CustomerId, OrderId, ShipmentId, Sku};
use daybook_domain::money::Currency;
use daybook_domain::order::{Command, LineQuantity, NewLine, State};
use daybook_event_store::append;
use daybook_tests::client::{Answer, Caller};
use daybook_tests::log;
use daybook_tests::metrics;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::tenant::Tenant;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// How many shipments the long order has.
const SHIPMENTS: u32 = 5_000;

/// How many ask for its history at once.
const ASKING: usize = 4;

/// How long anybody else waits for an answer meanwhile, on a machine that does other things, too.
const OTHERS_WAIT_MAX: Duration = Duration::from_secs(1);

/// How many lines the wide order has: as many as an order can have.
const LINES: u32 = 500;

/// How many events the wide order has.
const WIDE_EVENTS: u32 = 1_100;

/// How many ask for what changed in the wide order.
const ASKING_WIDE: usize = 12;

/// How much more memory all of them together may cost, in KiB.
const MEMORY_KIB_MAX: u64 = 128 * 1_024;

/// How many events are appended at once.
const APPENDED_AT_ONCE: usize = 500;

/// The log, and a query service that reads it. There are no read models.
struct Unprojected {
    superuser: PgPool,
    query: Running,
    servers: Servers,
}

impl Unprojected {
    async fn start() -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        Ok(Self {
            superuser: servers.database.superuser().await?,
            query: servers.run(Role::Query, &[]).await?,
            servers,
        })
    }

    async fn caller(&self) -> anyhow::Result<Caller> {
        let (url, tenant) = (self.query.url(), Tenant::create(&self.superuser).await?);
        Caller::new(&url, &url, &url, tenant)
    }

    /// Appends what these commands lead to, and gives the id of the order.
    async fn order(
        &self,
        tenant_id: Uuid,
        lines: Vec<NewLine>,
        commands: impl IntoIterator<Item = Command>,
    ) -> anyhow::Result<String> {
        let order_id = OrderId::from_uuid(Uuid::now_v7());
        let placed = Command::Place {
            order_id,
            reference: None,
            customer_id: CustomerId::parse("ada")?,
            currency: Currency::parse("USD")?,
            lines,
            shipping_address: None,
            expected_total_minor: None,
        };
        let (mut state, mut events) = (State::default(), Vec::new());
        for command in [placed].into_iter().chain(commands) {
            for event in state.decide(command)? {
                state = state.evolve(&event);
                events.push(log::encoded(&event));
            }
        }
        let role = self.servers.database.url("daybook_command");
        let mut connection = PgConnection::connect(&role).await?;
        let (id, mut decided_on) = (order_id.to_string(), None);
        for events in events.chunks(APPENDED_AT_ONCE) {
            let command = log::command(tenant_id, &id, decided_on, events.to_vec());
            let judgement = append(&mut connection, log::PARTITION, &[command]).await?;
            ensure!(judgement.chains[0].written_end == 1, "{judgement:?}");
            decided_on = events.last().map(|event| event.event_id);
        }
        Ok(id)
    }
}

/// A line that is like no other one.
fn line(number: u32) -> NewLine {
    NewLine {
        sku: Sku::parse(&format!("CD-{number}")).expect("a valid article"),
        quantity: number,
        unit_price_minor: i64::from(number),
    }
}

/// A confirmed order, which costs nothing, goes out piece by piece.
fn shipped(times: u32) -> impl Iterator<Item = Command> {
    let piece = LineQuantity {
        line_number: 1,
        quantity: 1,
    };
    let ship = move |number| Command::Ship {
        shipment_id: ShipmentId::parse(&format!("shipment-{number}")).expect("a valid id"),
        lines: vec![piece],
        carrier: None,
        tracking_number: None,
    };
    [Command::Confirm].into_iter().chain((0..times).map(ship))
}

/// The first of all lines goes, and another one comes behind the last.
fn replaced(times: u32) -> impl Iterator<Item = Command> {
    (1..=times).flat_map(|line_number| {
        let line = line(LINES + line_number);
        [Command::RemoveLine { line_number }, Command::AddLine { line }]
    })
}

/// A few histories are folded at a time; on a slow machine the others may wait for too long.
fn waited_too_long(answer: &Answer) -> bool {
    let code = &answer.json()["code"];
    code == "RATE_LIMITED" || code == "OVERLOADED"
}

#[tokio::test]
async fn whoever_asks_for_long_histories_keeps_nobody_else_waiting() -> anyhow::Result<()> {
    let services = Unprojected::start().await?;
    let (asking, other) = (services.caller().await?, services.caller().await?);
    let tenant_id = asking.tenant.tenant_id;
    let free = NewLine {
        quantity: SHIPMENTS,
        unit_price_minor: 0,
        ..line(1)
    };
    let id = services.order(tenant_id, vec![free], shipped(SHIPMENTS)).await?;
    let mut answers = JoinSet::new();
    for number in 0..ASKING {
        let (asking, path) = (
            asking.clone(),
            match number % 2 {
                0 => format!("/v1/orders/{id}/events?order=desc&diff=true&limit=1"),
                _ => format!("/v1/orders/{id}?as_of={}&fields=version", SHIPMENTS + 2),
            },
        );
        answers.spawn(async move { asking.get(&path).await });
    }
    let mut longest = Duration::ZERO;
    let others = async {
        while !answers.is_empty() {
            let asked = Instant::now();
            let (list, (alive, _)) = tokio::try_join!(
                other.get("/v1/stock-items"),
                metrics::get(services.query.admin, "/livez")
            )?;
            ensure!((list.status, alive) == (200, 200), "{}", list.json());
            longest = longest.max(asked.elapsed());
            if let Some(answer) = answers.try_join_next() {
                let answer = answer??;
                ensure!(
                    answer.status == 200 || waited_too_long(&answer),
                    "{}",
                    answer.json()
                );
            }
        }
        Ok(())
    };
    timeout(daybook_tests::wait::DEADLINE, others)
        .await
        .context("the histories are answered")??;
    ensure!(longest < OTHERS_WAIT_MAX, "others waited for {longest:?}");
    Ok(())
}

/// What one event changed may be half a megabyte: each line has another place.
#[tokio::test]
async fn what_many_events_changed_is_refused_where_it_is_too_much_to_hold() -> anyhow::Result<()> {
    let services = Unprojected::start().await?;
    let asking = services.caller().await?;
    let lines = (1..=LINES).map(line).collect();
    let id = services
        .order(asking.tenant.tenant_id, lines, replaced(WIDE_EVENTS / 2))
        .await?;
    let changes = |page: &str| format!("/v1/orders/{id}/events?diff=true&{page}");
    let before = services.query.memory_kib_max()?;
    let (mut answers, mut refused) = (JoinSet::new(), 0);
    for _ in 0..ASKING_WIDE {
        // Of the events that are read at once some are before the thousandth, and some behind it.
        let (asking, many) = (asking.clone(), changes("limit=100&from_version=950"));
        answers.spawn(async move { asking.get(&many).await });
    }
    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        let is_refused = answer.json()["code"] == "PAYLOAD_TOO_LARGE";
        ensure!(is_refused || waited_too_long(&answer), "{}", answer.json());
        refused += usize::from(is_refused);
    }
    ensure!(refused > 0, "nobody was answered");
    let more = services.query.memory_kib_max()? - before;
    ensure!(more < MEMORY_KIB_MAX, "they cost {more} KiB");
    let answer = asking.get(&changes("limit=2&from_version=999")).await?;
    ensure!(answer.status == 200, "{}", answer.json());
    Ok(())
}
