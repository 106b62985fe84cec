//! Replicas that are stopped and started again, one after the other, while clients call them that try twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;
use daybook_client::Refusal;
use daybook_proto::orders::v1::{ListOrdersRequest, PlaceOrderRequest};
use daybook_tests::client::{Answer, Caller};
use daybook_tests::command::Command as _;
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, log, wait};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Clients of each kind.
const CLIENTS: usize = 3;

/// Requests that are answered between one restart and the next.
const BETWEEN: usize = 100;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn replicas_restarted_one_after_another_fail_no_request_of_a_client_that_tries_twice()
-> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let tenant = Tenant::create(&superuser).await?;
    let mut services = Vec::new();
    for role in [Role::Command, Role::Command, Role::Query, Role::Query] {
        services.push(servers.run(role, &[]).await?);
    }
    let projector = servers.run(Role::Projector, &[]).await?;
    let replica = |number: usize| Replica::of(&services[number], &services[number + 2], &projector, &tenant);
    let mut clients = Clients::start([replica(0)?, replica(1)?]);
    for service in &mut services {
        clients.progress().await?;
        service.service.restart().await?;
    }
    clients.progress().await?;
    let (ledger, again) = clients.stop().await?;
    assert!(again > 0, "nobody noticed the restarts");
    // The ledger knows what was sent over gRPC alone, so the keys say that nothing was done twice.
    let events = log::events(&superuser).await?;
    check::log(&events)?;
    let mut keys = HashSet::new();
    for event in &events {
        let key = event.decoded_metadata().idempotency_key;
        assert!(keys.insert(key.clone()), "{key} was done twice");
    }
    assert!(
        keys.len() >= ledger.tally().accepted,
        "what was accepted is not recorded"
    );
    check::caught_up(&superuser).await?;
    check::read_models(&superuser, &events).await
}

/// How a request ended that may be sent once more.
enum Attempt {
    Answered,
    /// 503, `UNAVAILABLE`, or no connection.
    Unavailable(String),
    Failed(String),
}

impl Attempt {
    fn of_call<T>(answer: &Result<T, Status>) -> Self {
        match answer {
            Ok(_) => Self::Answered,
            Err(status) => {
                let refusal = Refusal::from(status.clone());
                // What the client's library says where the connection closed under a request is not always UNAVAILABLE.
                let no_answer = !refusal.is_answer && refusal.is_transient();
                match no_answer || status.code() == Code::Unavailable {
                    true => Self::Unavailable(format!("{status:?}")),
                    false => Self::Failed(format!("{status:?}")),
                }
            }
        }
    }

    fn of_http(answer: anyhow::Result<Answer>) -> Self {
        match answer {
            Err(error) => Self::Unavailable(format!("{error:#}")),
            Ok(answer) => match answer.status {
                200 | 201 => Self::Answered,
                503 => Self::Unavailable(format!("{answer:?}")),
                _ => Self::Failed(format!("{answer:?}")),
            },
        }
    }
}

/// A pair of services: one that takes commands, one that answers queries.
struct Replica {
    caller: Caller,
    rest: Rest,
}

impl Replica {
    fn of(command: &Running, query: &Running, projector: &Running, tenant: &Tenant) -> anyhow::Result<Self> {
        let caller = Caller::new(&command.url(), &query.url(), &projector.url(), tenant.clone())?;
        Ok(Self {
            caller,
            rest: Rest::new(&command.url(), &tenant.service_key),
        })
    }
}

/// What clients send, over both transports to both services.
enum Request {
    Call(Box<PlaceOrderRequest>),
    Post(String),
    CallForList,
    Get,
}

impl Request {
    const KINDS: usize = 4;

    fn new(kind: usize) -> Self {
        match kind % Self::KINDS {
            0 => Self::Call(Box::new(place(&new_order_id(), "customer-1"))),
            1 => Self::Post(new_key()),
            2 => Self::CallForList,
            _ => Self::Get,
        }
    }

    async fn send(&self, Replica { caller, rest }: &Replica, ledger: &Ledger) -> Attempt {
        match self {
            Self::Call(command) => {
                let answer = (**command).clone().send(caller.commands(), PATIENCE).await;
                ledger.note(&**command, &answer);
                Attempt::of_call(&answer)
            }
            Self::Post(key) => {
                let order = json!({
                    "customer_id": "customer-2", "currency": "USD",
                    "lines": [{"sku": "CD", "quantity": 1, "unit_price_minor": 5}],
                });
                Attempt::of_http(rest.command("/v1/orders", key, &order).await)
            }
            Self::CallForList => {
                let list = ListOrdersRequest::default();
                Attempt::of_call(&caller.queries().list_orders(list).await)
            }
            Self::Get => {
                let key = &caller.tenant.frontend_key;
                Attempt::of_http(caller.get_as(key, "/v1/orders?limit=1", &[]).await)
            }
        }
    }
}

/// Clients that send each request to one replica, and once more to the other where that one is not available.
struct Clients {
    answered: Arc<AtomicUsize>,
    again: Arc<AtomicUsize>,
    ledger: Ledger,
    stop: CancellationToken,
    workers: JoinSet<anyhow::Result<()>>,
}

impl Clients {
    fn start(replicas: [Replica; 2]) -> Self {
        let replicas = Arc::new(replicas);
        let mut clients = Self {
            answered: Arc::default(),
            again: Arc::default(),
            ledger: Ledger::default(),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
        };
        for number in 0..CLIENTS * Request::KINDS {
            let (answered, again) = (Arc::clone(&clients.answered), Arc::clone(&clients.again));
            let (replicas, ledger, stop) = (
                Arc::clone(&replicas),
                clients.ledger.clone(),
                clients.stop.clone(),
            );
            clients.workers.spawn(async move {
                for round in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    let request = Request::new(number);
                    let [one, other] = [round, round + 1].map(|turn| &replicas[turn % 2]);
                    let mut attempt = request.send(one, &ledger).await;
                    if let Attempt::Unavailable(_) = attempt {
                        again.fetch_add(1, Ordering::Relaxed);
                        attempt = request.send(other, &ledger).await;
                    }
                    match attempt {
                        Attempt::Answered => answered.fetch_add(1, Ordering::Relaxed),
                        Attempt::Unavailable(how) | Attempt::Failed(how) => bail!("{how}"),
                    };
                }
                Ok(())
            });
        }
        clients
    }

    /// Waits until so many more requests are answered. No client has given up.
    async fn progress(&mut self) -> anyhow::Result<()> {
        let wanted = self.answered.load(Ordering::Relaxed) + BETWEEN;
        wait::until("requests are answered", async || {
            if let Some(ended) = self.workers.try_join_next() {
                ended??;
            }
            Ok(self.answered.load(Ordering::Relaxed) >= wanted)
        })
        .await
    }

    /// What clients of commands were told, and how many requests were sent twice.
    async fn stop(mut self) -> anyhow::Result<(Ledger, usize)> {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended??;
        }
        Ok((self.ledger, self.again.load(Ordering::Relaxed)))
    }
}
