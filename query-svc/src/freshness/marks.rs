//! What is known about how far the read models have come: pure, so that it is tested without a clock or a database.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use daybook_event_store::{EpochId, Lineage, LogHead};
use daybook_service::consistency::ConsistencyToken;
use tokio::time::Instant;
use uuid::Uuid;

/// How long what was read last is good for. After that an answer says that it may be as old as that.
const CHECKED_MAX: Duration = Duration::from_secs(1);

/// How many observations of a partition's head are kept. At four in a second that is the last quarter of an hour; a read
/// model that is further behind than that is reported at least as late as that.
const OBSERVATIONS_MAX: usize = 4_096;

/// How long what projectors told of a later epoch is good for: they tell it every few seconds.
const LATER_EPOCH_MAX: Duration = Duration::from_secs(15);

/// How long the service is not ready for what projectors tell, while new connections lead to the same log. Whoever may publish
/// their signals may invent an epoch. It goes on to say that answers may be late.
const UNREADY_MAX: Duration = Duration::from_secs(30);

/// How far a read model, or the log, has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// A position that an answer includes, and everything before it.
    pub(crate) position: u64,
    /// Whether its tables are of a history that is gone: then no position of their rows is one of the log.
    pub(crate) is_of_lost_history: bool,
    /// How long ago, at the most, the oldest event was recorded that the answer may lack; 0 when it lacked none as of the
    /// last look at the log, a quarter of a second ago.
    pub(crate) lag_ms: u64,
    /// The newest epoch of the log; `None` before the first look at it.
    pub(crate) epoch: Option<EpochId>,
}

/// How far the log of a partition, or a read model, is known to have come in the log's newest epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HighWater {
    /// The newest epoch.
    pub(crate) epoch: EpochId,
    /// Everything up to here is there. `None` where a read model's tables are of a history that is gone, or nothing is known of them.
    pub(crate) position: Option<u64>,
}

/// Where a read model is, seen from a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// It has what the token stands for.
    Yes,
    /// It may come to it.
    NotYet,
    /// It never will: the token stands for what the log does not have, beyond its head or in a history that is gone.
    Never,
}

/// How far the live tables of a read model have come in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Everything up to here is in the tables.
    pub(super) position: u64,
    /// The generation of the log that the position belongs to.
    pub(super) log_generation: Uuid,
}

/// The marks of all live tables, by partition and name of the read model.
pub(super) type LiveMarks = HashMap<i32, HashMap<String, Mark>>;

/// A partition, its head, and its lineage where the epoch is another than before.
pub(super) type SeenHead = (i32, LogHead, Option<Lineage>);

/// A head as it was seen.
#[derive(Clone, Copy, Debug)]
struct Observation {
    /// The last time that it was this.
    at: Instant,
    position: u64,
}

/// What a partition's head was, lately.
#[derive(Clone, Debug)]
struct Heads {
    epoch: EpochId,
    is_standby: bool,
    lineage: Lineage,
    /// Ascending by position; never empty.
    observations: VecDeque<Observation>,
}

impl Heads {
    fn new(head: LogHead, lineage: Lineage, first: Observation) -> Self {
        Self {
            epoch: head.epoch,
            is_standby: head.is_standby,
            lineage,
            observations: VecDeque::from([first]),
        }
    }

    fn newest(&self) -> Observation {
        *self
            .observations
            .back()
            .expect("there is at least the first observation")
    }

    /// Notes a head of this generation.
    fn note(&mut self, seen: Observation) {
        match self.observations.back_mut() {
            Some(newest) if newest.position == seen.position => newest.at = seen.at,
            _ => self.observations.push_back(seen),
        }
        if self.observations.len() > OBSERVATIONS_MAX {
            self.observations.pop_front();
        }
    }

    /// Since when there may be an event after a position: the last time when the head was not beyond it. `None` when it
    /// is not beyond it now.
    fn beyond_since(&self, position: u64) -> Option<Instant> {
        if self.newest().position <= position {
            return None;
        }
        let later = self
            .observations
            .partition_point(|seen| seen.position <= position);
        // A read model that was behind from the first look on: it is later than that, by how much is not known.
        Some(self.observations[later.saturating_sub(1)].at)
    }
}

/// An epoch that projectors work in and that is later than this log's: the log was superseded.
#[derive(Clone, Copy, Debug)]
struct Later {
    epoch: EpochId,
    since: Instant,
    told_at: Instant,
}

/// Everything that was read last.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    marks: LiveMarks,
    heads: HashMap<i32, Heads>,
    later: HashMap<i32, Later>,
    /// The epochs of logs for which no later one was found.
    unconfirmed: HashMap<i32, EpochId>,
    checked_at: Option<Instant>,
}

impl Marks {
    /// Whether any of these heads is of another epoch than the one before.
    pub(super) fn are_news(&self, heads: &[SeenHead]) -> bool {
        let mut heads = heads.iter();
        heads.any(|(partition, _, lineage)| lineage.is_some() && self.epoch(*partition).is_some())
    }

    /// Notes a look: checkpoints, and then heads, read at or after `at`. Whether there may be anything new.
    ///
    /// Where a log goes on in another epoch the checkpoints may have been read on the server before, whose tables may be
    /// further: they count for nothing.
    pub(super) fn note(&mut self, at: Instant, checkpoints: LiveMarks, heads: Vec<SeenHead>) -> bool {
        let checkpoints = match self.are_news(&heads) {
            true => LiveMarks::new(),
            false => checkpoints,
        };
        // Whoever waits for what the log does not have is told by any look at it.
        let changed = self.note_checkpoints(at, checkpoints) || !heads.is_empty();
        for (partition, head, lineage) in heads {
            self.note_head(at, partition, head, lineage);
        }
        changed
    }

    /// Notes the checkpoints of the live tables, read at or after `at`. Whether any of them changed.
    fn note_checkpoints(&mut self, at: Instant, marks: LiveMarks) -> bool {
        self.checked_at = Some(at);
        let changed = self.marks != marks;
        self.marks = marks;
        changed
    }

    /// Forgets the checkpoints: they may be of a server that is not asked any more.
    pub(super) fn forget_checkpoints(&mut self) {
        self.marks.clear();
    }

    /// Notes the head of a partition, read at or after `at`, and the lineage where the generation is another than before.
    /// What is known about heads starts over then.
    fn note_head(&mut self, at: Instant, partition: i32, head: LogHead, lineage: Option<Lineage>) {
        let seen = Observation {
            at,
            position: head.position,
        };
        match self.heads.get_mut(&partition) {
            Some(heads) if heads.epoch == head.epoch && heads.newest().position <= head.position => {
                heads.note(seen);
                heads.is_standby = head.is_standby;
            }
            _ => {
                let before = self.heads.remove(&partition);
                let lineage = lineage
                    .or(before.map(|before| before.lineage))
                    .unwrap_or_default();
                self.heads.insert(partition, Heads::new(head, lineage, seen));
            }
        }
    }

    /// Notes the epoch that a projector works in. Whether this is the first that is told of the log being superseded.
    pub(super) fn note_told(&mut self, now: Instant, partition: i32, epoch: EpochId) -> bool {
        let own = self.epoch(partition);
        let is_later = own.is_some_and(|own| own < epoch && !epoch.is_invented(own));
        let since = self.superseded_since(partition, now);
        if is_later {
            let later = Later {
                epoch,
                since: since.unwrap_or(now),
                told_at: now,
            };
            self.later.insert(partition, later);
        }
        is_later && since.is_none()
    }

    /// Since when it is known that a partition's log was superseded; `None` when it was not.
    fn superseded_since(&self, partition: i32, now: Instant) -> Option<Instant> {
        let later = self.later.get(&partition)?;
        let is_later = self.epoch(partition).is_some_and(|own| own < later.epoch);
        (is_later && now.duration_since(later.told_at) < LATER_EPOCH_MAX).then_some(later.since)
    }

    /// The partitions whose log was superseded, with the epoch of each.
    pub(super) fn superseded(&self, now: Instant) -> Vec<(i32, EpochId)> {
        let partitions = self.later.keys().copied();
        partitions
            .filter(|&partition| self.superseded_since(partition, now).is_some())
            .filter_map(|partition| Some((partition, self.epoch(partition)?)))
            .collect()
    }

    /// A partition whose log was superseded, unless nobody has found a later one for long.
    pub(super) fn unready(&self, now: Instant) -> Option<i32> {
        let superseded = self.superseded(now).into_iter();
        let mut unready = superseded.filter(|(partition, log)| self.unconfirmed.get(partition) != Some(log));
        unready.next().map(|(partition, _)| partition)
    }

    /// Notes that new connections lead to the same log as those before. Whether that has been so for long now.
    pub(super) fn note_unconfirmed(&mut self, now: Instant, partition: i32, log: EpochId) -> bool {
        let since = self.superseded_since(partition, now);
        since.is_some_and(|since| now.duration_since(since) >= UNREADY_MAX)
            && self.unconfirmed.insert(partition, log) != Some(log)
    }

    /// The newest epoch of the log in a partition.
    pub(super) fn epoch(&self, partition: i32) -> Option<EpochId> {
        self.heads.get(&partition).map(|heads| heads.epoch)
    }

    /// Whether the log has what a generation recorded up to a position; `None` when it is not known here.
    pub(super) fn has(&self, partition: i32, generation: Uuid, position: u64) -> Option<bool> {
        let last = self.heads.get(&partition)?.lineage.valid_up_to(generation)?;
        Some(position <= last)
    }

    /// How far a read model has come in the log as it is now. One that is beyond a fork has not come anywhere.
    pub(super) fn position(&self, model: &str, partition: i32) -> u64 {
        let mark = self.mark(model, partition);
        mark.filter(|mark| self.is_of_log(partition, mark))
            .map_or(0, |mark| mark.position)
    }

    fn mark(&self, model: &str, partition: i32) -> Option<&Mark> {
        self.marks.get(&partition)?.get(model)
    }

    fn is_of_log(&self, partition: i32, mark: &Mark) -> bool {
        self.has(partition, mark.log_generation, mark.position) == Some(true)
    }

    /// How far a read model, or without one the log itself, has come in the newest epoch; `None` before the first look at the log.
    pub(super) fn high_water(&self, model: Option<&str>, partition: i32) -> Option<HighWater> {
        let heads = self.heads.get(&partition)?;
        let of_log = |mark: &&Mark| self.is_of_log(partition, mark);
        let position = match model {
            Some(model) => self
                .mark(model, partition)
                .filter(of_log)
                .map(|mark| mark.position),
            // The log has what any read model has, and those are looked at more often.
            None => {
                let marks = self.marks.get(&partition).into_iter().flat_map(HashMap::values);
                let marks = marks.filter(of_log).map(|mark| mark.position);
                marks.chain([heads.newest().position]).max()
            }
        };
        let epoch = heads.epoch;
        Some(HighWater { epoch, position })
    }

    /// Whether a read model, or without one the log itself, has what a token stands for that somebody has shown at a moment.
    pub(super) fn reached(
        &self,
        model: Option<&str>,
        token: &ConsistencyToken,
        shown_at: Instant,
    ) -> Reached {
        let Some(heads) = self.heads.get(&token.partition) else {
            return Reached::NotYet;
        };
        let newest = heads.newest();
        let position = model.map_or(newest.position, |model| self.position(model, token.partition));
        match heads.lineage.valid_up_to(token.generation) {
            Some(last) if token.position > last => Reached::Never,
            Some(_) if token.position <= position => Reached::Yes,
            // The log was looked at after the token was given out, and a standby may be behind.
            Some(_) if token.position > newest.position && newest.at >= shown_at && !heads.is_standby => {
                Reached::Never
            }
            Some(_) => Reached::NotYet,
            // Newer than all that was seen here: it may be that another server has it already.
            None if token.epoch > heads.epoch.number => Reached::NotYet,
            None => Reached::Never,
        }
    }

    /// How far a read model has come: an answer that is read after this has that.
    pub(super) fn progress(&self, model: &str, partition: i32, now: Instant) -> Progress {
        let position = self.position(model, partition);
        let beyond_since = self
            .heads
            .get(&partition)
            .and_then(|heads| heads.beyond_since(position));
        let late_since = beyond_since
            .or(self
                .checked_at
                .filter(|checked_at| now.duration_since(*checked_at) > CHECKED_MAX))
            .or(self.superseded_since(partition, now));
        let mark = self.mark(model, partition);
        Progress {
            position,
            is_of_lost_history: mark.is_some_and(|mark| !self.is_of_log(partition, mark)),
            lag_ms: lag_ms(late_since, now),
            epoch: self.epoch(partition),
        }
    }

    /// How far the log has come: an answer that is read from it after this has that. It is late where the log was superseded.
    pub(super) fn log_progress(&self, partition: i32, now: Instant) -> Progress {
        let position = self
            .heads
            .get(&partition)
            .map_or(0, |heads| heads.newest().position);
        Progress {
            position,
            is_of_lost_history: false,
            lag_ms: lag_ms(self.superseded_since(partition, now), now),
            epoch: self.epoch(partition),
        }
    }
}

/// How late what is late since then is, in whole milliseconds, at least one: "0" is said only when nothing is missing.
fn lag_ms(late_since: Option<Instant>, now: Instant) -> u64 {
    late_since.map_or(0, |since| {
        let lag = now.duration_since(since).as_millis();
        u64::try_from(lag).unwrap_or(u64::MAX).max(1)
    })
}

#[cfg(test)]
mod tests {
    use daybook_event_store::Epoch;

    use super::*;

    const MODEL: &str = "order_list";
    const LOG: Uuid = Uuid::from_u128(1);
    const RESTORED: Uuid = Uuid::from_u128(2);
    const QUARTER: Duration = Duration::from_millis(250);

    fn applied(marks: &mut Marks, at: Instant, position: u64) {
        let mark = Mark {
            position,
            log_generation: LOG,
        };
        marks.note_checkpoints(
            at,
            LiveMarks::from([(0, HashMap::from([(MODEL.to_owned(), mark)]))]),
        );
    }

    fn head(marks: &mut Marks, at: Instant, generation: Uuid, position: u64) {
        let epoch = Epoch {
            number: 1,
            generation,
            from_position: 1,
        };
        let head = LogHead {
            epoch: EpochId {
                number: epoch.number,
                generation,
            },
            position,
            recorded_at: None,
            event_id: None,
            is_standby: false,
        };
        marks.note_head(at, 0, head, Some(Lineage::from_iter([epoch])));
    }

    fn progress(marks: &Marks, now: Instant) -> Progress {
        marks.progress(MODEL, 0, now)
    }

    #[test]
    fn a_read_model_that_has_everything_is_not_late() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        assert_eq!(
            progress(&marks, start + QUARTER),
            Progress {
                position: 7,
                is_of_lost_history: false,
                lag_ms: 0,
                epoch: Some(EpochId {
                    number: 1,
                    generation: LOG
                })
            }
        );
    }

    #[test]
    fn lag_is_the_time_since_the_log_was_last_seen_no_further() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        head(&mut marks, start + QUARTER, LOG, 7);
        head(&mut marks, start + 2 * QUARTER, LOG, 9);
        head(&mut marks, start + 3 * QUARTER, LOG, 12);
        let now = start + 4 * QUARTER;
        applied(&mut marks, now, 7);
        assert_eq!(progress(&marks, now).lag_ms, 750);
        applied(&mut marks, now, 10);
        assert_eq!(progress(&marks, now).lag_ms, 500);
        applied(&mut marks, now, 12);
        assert_eq!(progress(&marks, now).lag_ms, 0);
    }

    #[test]
    fn a_read_model_that_never_was_up_to_date_is_at_least_as_late_as_the_first_look() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        head(&mut marks, start + QUARTER, LOG, 8);
        applied(&mut marks, start, 3);
        assert_eq!(progress(&marks, start + QUARTER).lag_ms, 250);
    }

    #[test]
    fn without_a_look_for_a_while_nobody_is_said_to_be_up_to_date() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        assert_eq!(progress(&marks, start + Duration::from_secs(5)).lag_ms, 5_000);
    }

    #[test]
    fn positions_in_a_log_that_is_gone_count_for_nothing() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        head(&mut marks, start, RESTORED, 5);
        assert_eq!(marks.position(MODEL, 0), 0);
        assert!(progress(&marks, start).is_of_lost_history);
        assert_eq!(marks.epoch(0).map(|epoch| epoch.generation), Some(RESTORED));
        assert_eq!(marks.log_progress(0, start).position, 5);
    }

    #[test]
    fn positions_before_a_fork_count_in_the_next_generation() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        for (fork, position) in [(7, 7), (6, 0)] {
            let (head, lineage) = restored(fork);
            marks.note_head(start, 0, head, lineage);
            assert_eq!(marks.position(MODEL, 0), position);
            assert_eq!(marks.has(0, LOG, 7), Some(position == 7));
        }
    }

    #[test]
    fn checkpoints_that_were_read_before_another_epoch_was_found_count_for_nothing() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 95);
        applied(&mut marks, start, 85);
        // The session ended between the two reads, and the next one led to another server: its tables may stand before 85.
        let checkpoints = marks.marks.clone();
        let (head, lineage) = restored(90);
        assert!(marks.note(start + QUARTER, checkpoints.clone(), vec![(0, head, lineage)]));
        let token = token(1, LOG, 84);
        assert_eq!(marks.reached(Some(MODEL), &token, start), Reached::NotYet);
        marks.note(start + QUARTER, checkpoints, Vec::new());
        assert_eq!(marks.reached(Some(MODEL), &token, start), Reached::Yes);
    }

    #[test]
    fn a_log_is_known_to_be_as_far_as_its_head_or_a_read_model_and_tables_of_a_lost_history_are_nowhere() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        applied(&mut marks, start, 7);
        assert_eq!(
            marks.high_water(Some(MODEL), 0),
            None,
            "the log was not looked at"
        );
        head(&mut marks, start, LOG, 5);
        let positions = |marks: &Marks| [None, Some(MODEL)].map(|model| marks.high_water(model, 0)?.position);
        assert_eq!(positions(&marks), [Some(7), Some(7)]);
        head(&mut marks, start, LOG, 9);
        assert_eq!(positions(&marks), [Some(9), Some(7)]);
        let forgotten = {
            let mut marks = marks.clone();
            marks.forget_checkpoints();
            positions(&marks)
        };
        assert_eq!(forgotten, [Some(9), None]);

        let (head, lineage) = restored(6);
        marks.note_head(start, 0, head, lineage);
        assert_eq!(positions(&marks), [Some(6), None]);
    }

    /// The head of a log that was restored to this position, and its lineage.
    fn restored(position: u64) -> (LogHead, Option<Lineage>) {
        let epochs = [(1, LOG, 1), (2, RESTORED, position + 1)];
        let lineage = Lineage::from_iter(epochs.map(|(number, generation, from_position)| Epoch {
            number,
            generation,
            from_position,
        }));
        let head = LogHead {
            epoch: EpochId {
                number: 2,
                generation: RESTORED,
            },
            position,
            recorded_at: None,
            event_id: None,
            is_standby: false,
        };
        (head, Some(lineage))
    }

    fn token(epoch: i32, generation: Uuid, position: u64) -> ConsistencyToken {
        ConsistencyToken {
            partition: 0,
            position,
            epoch,
            generation,
        }
    }

    #[test]
    fn a_token_beyond_the_head_is_waited_for_until_the_log_was_looked_at_after_it_was_shown() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        let shown_at = start + QUARTER;
        let reached =
            |marks: &Marks, position| marks.reached(Some(MODEL), &token(1, LOG, position), shown_at);
        assert_eq!(reached(&marks, 7), Reached::Yes);
        assert_eq!(reached(&marks, 8), Reached::NotYet);
        head(&mut marks, start + 2 * QUARTER, LOG, 8);
        assert_eq!(
            reached(&marks, 8),
            Reached::NotYet,
            "the read model has yet to come"
        );
        assert_eq!(
            marks.reached(None, &token(1, LOG, 8), shown_at),
            Reached::Yes,
            "the log has it"
        );
        assert_eq!(reached(&marks, 9), Reached::Never);
        assert_eq!(marks.reached(None, &token(1, LOG, 9), shown_at), Reached::Never);
        let standby = LogHead {
            epoch: EpochId {
                number: 1,
                generation: LOG,
            },
            position: 8,
            recorded_at: None,
            event_id: None,
            is_standby: true,
        };
        marks.note_head(start + 3 * QUARTER, 0, standby, None);
        assert_eq!(reached(&marks, 9), Reached::NotYet, "a standby may be behind");
    }

    #[test]
    fn a_token_of_an_epoch_that_was_not_seen_yet_is_waited_for_and_one_of_a_history_that_is_gone_is_not() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        let reached = |marks: &Marks, token| marks.reached(Some(MODEL), &token, start);
        assert_eq!(reached(&marks, token(2, RESTORED, 7)), Reached::NotYet);
        assert_eq!(reached(&marks, token(1, RESTORED, 7)), Reached::Never);
        let epochs = [(1, LOG, 1), (2, RESTORED, 6)].map(|(number, generation, from_position)| Epoch {
            number,
            generation,
            from_position,
        });
        let head = LogHead {
            epoch: EpochId {
                number: 2,
                generation: RESTORED,
            },
            position: 9,
            recorded_at: None,
            event_id: None,
            is_standby: false,
        };
        marks.note_head(start, 0, head, Some(Lineage::from_iter(epochs)));
        assert_eq!(reached(&marks, token(2, RESTORED, 7)), Reached::NotYet);
        assert_eq!(reached(&marks, token(1, LOG, 6)), Reached::Never);
        assert_eq!(reached(&marks, token(1, LOG, 5)), Reached::NotYet);
        assert_eq!(reached(&marks, token(2, LOG, 6)), Reached::Never);
    }

    #[test]
    fn an_answer_from_a_log_that_was_superseded_is_late_until_the_log_is_another_or_nobody_tells_it() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        let epoch = |number, generation| EpochId { number, generation };
        // Of a read model, and of what is read from the log itself.
        let lags = |marks: &Marks, now| {
            let of_log = marks.log_progress(0, now).lag_ms;
            (marks.unready(now), progress(marks, now).lag_ms, of_log)
        };
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        assert!(!marks.note_told(start, 0, epoch(1, LOG)));
        assert_eq!(lags(&marks, start), (None, 0, 0));

        assert!(marks.note_told(start, 0, epoch(2, RESTORED)));
        assert!(
            !marks.note_told(start + QUARTER, 0, epoch(2, RESTORED)),
            "it was told before"
        );
        assert!(!marks.note_told(start + QUARTER, 0, epoch(1, LOG)));
        let now = start + 2 * QUARTER;
        assert_eq!(lags(&marks, now), (Some(0), 500, 500));

        let mut silent = marks.clone();
        let later = now + LATER_EPOCH_MAX;
        applied(&mut silent, later, 7);
        assert_eq!(lags(&silent, later), (None, 0, 0));

        let epochs = [(1, LOG, 1), (2, RESTORED, 8)].map(|(number, generation, from_position)| Epoch {
            number,
            generation,
            from_position,
        });
        let head = LogHead {
            epoch: EpochId {
                number: 2,
                generation: RESTORED,
            },
            position: 7,
            recorded_at: None,
            event_id: None,
            is_standby: false,
        };
        marks.note_head(now, 0, head, Some(Lineage::from_iter(epochs)));
        assert_eq!(lags(&marks, now), (None, 0, 0));
    }

    #[test]
    fn an_epoch_that_nobody_finds_for_long_is_no_reason_not_to_be_ready_though_answers_say_that_they_may_be_late()
     {
        let (mut marks, start) = (Marks::default(), Instant::now());
        head(&mut marks, start, LOG, 7);
        applied(&mut marks, start, 7);
        let log = EpochId {
            number: 1,
            generation: LOG,
        };
        let told = |marks: &mut Marks, now, number| {
            let generation = Uuid::now_v7();
            marks.note_told(now, 0, EpochId { number, generation })
        };
        assert!(!told(&mut marks, start, i32::MAX), "nobody has opened so many");
        assert_eq!(marks.unready(start), None);

        let mut now = start;
        while now < start + UNREADY_MAX {
            told(&mut marks, now, 2);
            assert!(!marks.note_unconfirmed(now, 0, log));
            assert_eq!(marks.unready(now), Some(0));
            now += Duration::from_secs(10);
        }
        told(&mut marks, now, 2);
        assert!(marks.note_unconfirmed(now, 0, log));
        assert!(!marks.note_unconfirmed(now, 0, log), "it was noted before");
        assert_eq!(marks.unready(now), None);
        assert_eq!(marks.superseded(now), [(0, log)]);
        applied(&mut marks, now, 7);
        assert_eq!(progress(&marks, now).lag_ms, 30_000);
        let later = now + 2 * LATER_EPOCH_MAX;
        told(&mut marks, later, 3);
        assert_eq!(marks.unready(later), None, "whatever else is told of this log");
    }

    #[test]
    fn the_history_of_heads_is_bounded() {
        let (mut marks, start) = (Marks::default(), Instant::now());
        for position in 1..=10_000 {
            head(&mut marks, start, LOG, position);
        }
        assert_eq!(marks.heads[&0].observations.len(), OBSERVATIONS_MAX);
    }
}
