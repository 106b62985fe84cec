//! What the users of `deploy/nats/users.conf` may do and may not, on a real server.

use anyhow::Context as _;
use async_nats::{Client, ConnectErrorKind, Event};
use daybook_devstack::NatsUser;
use daybook_event_bus::{Deployment, bus, consume, message};
use daybook_event_store::RecordedEvent;
use daybook_tests::wait;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{DEADLINE, PARTITION, Stack, read_to};

/// A client, and what the server complains of.
struct SignedIn {
    client: Client,
    complaints: mpsc::Receiver<String>,
}

impl SignedIn {
    async fn start(stack: &Stack, user: NatsUser) -> anyhow::Result<Self> {
        let (complain, complaints) = mpsc::channel(64);
        let (servers, options) = bus::servers(&stack.nats.url_of(user))?;
        let options = options.event_callback(move |event| {
            if let Event::ServerError(error) = event {
                let _ = complain.try_send(error.to_string());
            }
            std::future::ready(())
        });
        let client = options.connect(servers).await?;
        Ok(Self { client, complaints })
    }

    /// Fails unless the server refuses this: "Publish to" or "Subscription to", and the subject.
    async fn is_refused(&mut self, what: &str, subject: &str) -> anyhow::Result<()> {
        self.client.flush().await?;
        let complaint = tokio::time::timeout(DEADLINE, self.complaints.recv()).await;
        let complaint = complaint
            .with_context(|| format!("{subject} is open"))?
            .context("an event")?;
        let expected = format!("permissions violation for {what} \"{subject}\"");
        let complaint = complaint.to_lowercase();
        anyhow::ensure!(
            complaint.contains(&expected.to_lowercase()),
            "{complaint} is not {expected}"
        );
        Ok(())
    }

    async fn may_not_publish(&mut self, subject: &str) -> anyhow::Result<()> {
        self.client.publish(subject.to_owned(), "{}".into()).await?;
        self.is_refused("publish to", subject).await
    }

    async fn may_not_subscribe(&mut self, subject: &str) -> anyhow::Result<()> {
        let _subscription = self.client.subscribe(subject.to_owned()).await?;
        self.is_refused("subscription to", subject).await
    }
}

async fn last_sequence(stack: &Stack) -> anyhow::Result<u64> {
    Ok(stack.raw_stream().await?.cached_info().state.last_sequence)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_password_is_not_let_in() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let port = stack.nats.port();
    for credentials in ["", "daybook-admin@", "daybook-command:guess@", "stranger:guess@"] {
        let (servers, options) = bus::servers(&format!("nats://{credentials}127.0.0.1:{port}"))?;
        let refused = options.connect(servers).await.err().map(|error| error.kind());
        assert_eq!(
            refused,
            Some(ConnectErrorKind::AuthorizationViolation),
            "{credentials}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_service_alone_may_publish_an_event() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(3).await?;
    publishing.stop().await?;
    let newest = stack.log().await?.pop().context("there are events")?;
    let plausible = RecordedEvent {
        position: 4,
        event_id: Uuid::now_v7(),
        stream_id: "ord_forged".to_owned(),
        ..newest
    };
    let generation = stack.store.head(PARTITION).await?.epoch.generation;
    let message = message::encode(&plausible, generation, &Deployment::default());

    for user in [NatsUser::Projector, NatsUser::Query, NatsUser::Command] {
        let mut client = SignedIn::start(&stack, user).await?;
        let (subject, headers) = (message.subject.clone(), message.headers.clone());
        let publish = client
            .client
            .publish_with_headers(subject, headers, message.payload.clone());
        publish.await?;
        if user == NatsUser::Command {
            wait::until("the event", async || Ok(last_sequence(&stack).await? == 4)).await?;
        } else {
            client.is_refused("publish to", &message.subject).await?;
            assert_eq!(last_sequence(&stack).await?, 3, "{user:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_not_do_what_its_service_does_not_do() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let mut command = SignedIn::start(&stack, NatsUser::Command).await?;
    for subject in [
        "daybook.applied.order_list.0",
        "daybook.freed",
        "other.events.0.forged",
        "_INBOX_daybook-projector.answer",
        "$JS.API.STREAM.DELETE.other_EVENTS_0",
        "$JS.API.STREAM.PURGE.daybook_EVENTS_0",
    ] {
        command.may_not_publish(subject).await?;
    }
    let mut projector = SignedIn::start(&stack, NatsUser::Projector).await?;
    for subject in [
        "daybook.replicas.announced",
        "_INBOX_daybook-command.answer",
        "$JS.API.STREAM.CREATE.own",
        "$JS.API.STREAM.UPDATE.daybook_EVENTS_0",
        "$JS.API.STREAM.DELETE.daybook_EVENTS_0",
        "$JS.API.STREAM.PURGE.daybook_EVENTS_0",
        "$JS.API.STREAM.MSG.DELETE.daybook_EVENTS_0",
    ] {
        projector.may_not_publish(subject).await?;
    }
    for subject in ["daybook.replicas.>", "_INBOX_daybook-command.>", "_INBOX.>", ">"] {
        projector.may_not_subscribe(subject).await?;
    }
    let mut query = SignedIn::start(&stack, NatsUser::Query).await?;
    for subject in [
        "daybook.applied.order_list.0",
        "daybook.freed",
        "$JS.API.STREAM.LIST",
    ] {
        query.may_not_publish(subject).await?;
    }
    for subject in ["daybook.events.>", "_INBOX_daybook-projector.>", ">"] {
        query.may_not_subscribe(subject).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_projector_sees_that_the_stream_carries_a_later_epoch_than_its_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(3).await?;
    let before = stack.store.head(PARTITION).await?.epoch;
    let projector = stack.bus(NatsUser::Projector).await?;
    assert_eq!(consume::superseding(&projector, PARTITION, before).await?, None);
    stack.fork(3).await?;
    wait::until("the stream carries the next epoch", async || {
        let later = consume::superseding(&projector, PARTITION, before).await?;
        Ok(later.is_some())
    })
    .await?;
    publishing.stop().await
}

/// The server writes its answers to whatever subject it is asked to, so whoever may ask JetStream anything can have an
/// answer stored in the stream. It passes for no event.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_jetstream_that_is_aimed_at_the_stream_disturbs_nobody() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(3).await?;
    let generation = stack.store.head(PARTITION).await?.epoch.generation;
    let projector = SignedIn::start(&stack, NatsUser::Projector).await?;
    let request = "$JS.API.CONSUMER.CREATE.daybook_EVENTS_0";
    let reply = format!("daybook.events.0.{generation}.forged");
    projector
        .client
        .publish_with_reply(request, reply, "{}".into())
        .await?;
    projector.client.flush().await?;

    publishing.tell(stack.commit(5).await?);
    publishing.published(8).await?;
    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 8).await?, stack.log().await?);
    publishing.stop().await
}
