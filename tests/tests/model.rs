//! The simulation's model of the log judges every batch as Postgres does.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use daybook_devstack::testing::test_cluster;
use daybook_event_store::{
    Decision, EpochId, Intent, JudgedChain, Judgement, Log as _, NewCommand, NewEvent, Receipt, Remembered,
    chains, groups,
};
use daybook_simulation::model::{JudgedBy, Model};
use daybook_tests::database::Database;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

const TENANT: Uuid = Uuid::from_u128(1);

/// Batches in one history.
const BATCHES: usize = 400;

/// Makes batches such as appenders do, and worse: chains with known keys in them, on events that are stale or were never
/// recorded, without events, and questions.
struct History {
    random: StdRng,
    /// The newest events that were ever decided on each stream, recorded or not.
    newest: HashMap<usize, Vec<Option<Uuid>>>,
    keys: Vec<Arc<str>>,
}

impl History {
    fn batch(&mut self, model: &Model) -> Vec<NewCommand> {
        let mut batch: Vec<NewCommand> = Vec::new();
        for stream in 0..6 {
            match self.random.random_range(0..4) {
                0 => {}
                1 => batch.push(self.command(stream, Intent::Ask)),
                _ => self.chain(stream, model, &mut batch),
            }
        }
        // No key comes twice into a batch.
        let mut seen = std::collections::HashSet::new();
        batch.retain(|command| seen.insert(Arc::clone(&command.key)));
        self.group(&mut batch);
        batch
    }

    /// Has some chains of one command, side by side, stand together or not at all.
    fn group(&mut self, batch: &mut [NewCommand]) {
        let alone = |chain: &Range<usize>, batch: &[NewCommand]| {
            chain.len() == 1 && matches!(batch[chain.start].intent, Intent::Write(_))
        };
        let mut group = None;
        for chain in chains(batch) {
            let may_join = alone(&chain, batch) && self.random.random_ratio(3, 4);
            group = may_join.then(|| group.unwrap_or_else(|| Uuid::from_u128(self.random.random())));
            batch[chain.start].group = group;
        }
    }

    fn chain(&mut self, stream: usize, model: &Model, batch: &mut Vec<NewCommand>) {
        let known = self.newest.entry(stream).or_insert_with(|| vec![None]);
        let mut decided_on = if self.random.random_ratio(3, 4) {
            let recorded = model.page(TENANT, &format!("stream-{stream}"), 1, usize::MAX);
            recorded.last().map(|event| event.event_id)
        } else {
            known[self.random.random_range(0..known.len())]
        };
        // Only commands that are decided alone come together.
        let is_alone = self.random.random_ratio(2, 3);
        let length = if is_alone {
            1
        } else {
            self.random.random_range(2..5)
        };
        for _ in 0..length {
            let events = (0..self.random.random_range(0..3)).map(|_| NewEvent {
                event_id: Uuid::from_u128(self.random.random()),
                event_type: "test.happened",
                schema_version: 1,
                payload: r#"{"a": 1}"#.to_owned(),
            });
            let decision = Decision {
                decided_on,
                metadata: "{}".into(),
                events: events.collect(),
                rejection: None,
            };
            decided_on = decision.leads_to();
            self.newest
                .get_mut(&stream)
                .expect("it was made")
                .push(decided_on);
            let command = self.command(stream, Intent::Write(decision));
            batch.push(command);
        }
    }

    fn command(&mut self, stream: usize, intent: Intent) -> NewCommand {
        let is_known = !self.keys.is_empty() && self.random.random_ratio(1, 8);
        let key: Arc<str> = if is_known {
            let index = self.random.random_range(0..self.keys.len());
            Arc::clone(&self.keys[index])
        } else {
            Uuid::from_u128(self.random.random()).to_string().into()
        };
        self.keys.push(Arc::clone(&key));
        NewCommand {
            tenant_id: TENANT,
            key,
            fingerprints: vec![stream as i64],
            stream_id: format!("stream-{stream}").into(),
            category: "order",
            group: None,
            intent,
        }
    }
}

/// Without what only a clock and a server know.
fn comparable(judgement: &Judgement) -> (Vec<JudgedChain>, Vec<usize>) {
    let mut known = judgement.known.clone();
    known.sort_unstable();
    (judgement.chains.clone(), known)
}

fn timeless(remembered: HashMap<usize, Remembered>) -> Vec<(usize, Remembered)> {
    let timeless = remembered.into_iter().map(|(index, one)| {
        let receipt = Receipt {
            recorded_at: time::OffsetDateTime::UNIX_EPOCH,
            epoch: EpochId::default(),
            ..one.receipt
        };
        (index, Remembered { receipt, ..one })
    });
    let mut timeless: Vec<_> = timeless.collect();
    timeless.sort_by_key(|(index, _)| *index);
    timeless
}

#[tokio::test]
async fn the_model_judges_and_remembers_as_postgres_does() -> anyhow::Result<()> {
    let cluster = test_cluster().await?;
    for seed in 0..4 {
        let database = Database::create_on(cluster.clone()).await?;
        database.add_tenants(&[TENANT]).await?;
        let log = database.log().await?;
        let mut model = Model::new(JudgedBy::EventId);
        let mut history = History {
            random: StdRng::seed_from_u64(seed),
            newest: HashMap::new(),
            keys: Vec::new(),
        };
        let (mut cut, mut written, mut cut_groups) = (0, 0, 0);
        for number in 0..BATCHES {
            let batch = history.batch(&model);
            if batch.is_empty() {
                continue;
            }
            let (theirs, ours) = (log.append(0, &batch).await?, model.append(&batch));
            assert_eq!(
                comparable(&theirs),
                comparable(&ours),
                "seed {seed}, batch {number}"
            );
            let keys: Vec<_> = batch
                .iter()
                .map(|command| (TENANT, Arc::clone(&command.key)))
                .collect();
            let remembered = timeless(log.remembered(0, model.epoch, &keys).await?);
            assert_eq!(
                remembered,
                timeless(model.remembered(&keys)),
                "seed {seed}, batch {number}"
            );
            cut += theirs.known.len();
            let chains = chains(&batch);
            let stands = |chain: usize| theirs.chains[chain].written_end > chains[chain].start;
            written += (0..chains.len()).filter(|chain| stands(*chain)).count();
            for group in groups(&batch, &chains)
                .into_iter()
                .filter(|group| group.len() > 1)
            {
                let standing = group.clone().filter(|chain| stands(*chain)).count();
                assert!(
                    standing == 0 || standing == group.len(),
                    "seed {seed}, batch {number}"
                );
                cut_groups += usize::from(standing == 0);
            }
        }
        assert!(
            cut > 100 && written > 200 && cut_groups > 20,
            "{cut} known keys, {written} chains that stand and {cut_groups} groups that do not are too few"
        );
    }
    Ok(())
}
