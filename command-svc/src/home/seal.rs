//! Messages between replicas are authenticated: HMAC-SHA256 under a key that only command services have.
//!
//! The seal covers what kind of message it is, who sent it, whom it is for, when, and in which exchange. So a message is
//! good for one receiver and a moment, and an answer for one question.

use daybook_service::key::SecretKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message;
use sha2::Sha256;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// How far the clocks of two replicas may differ.
const SKEW_MAX: Duration = Duration::milliseconds(500);

/// How old a message may be, beside that: nobody waits for the answer to an older one.
const AGE_MAX: Duration = Duration::seconds(1);

/// For how long a message is good, on the clock of its receiver.
pub(super) const GOOD_FOR: std::time::Duration =
    SKEW_MAX.saturating_mul(2).saturating_add(AGE_MAX).unsigned_abs();

/// The receiver of what is for everybody.
const EVERYBODY: Uuid = Uuid::nil();

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Announcement = 1,
    Command = 2,
    Answer = 3,
}

/// Seals what one replica sends, and opens what it gets.
pub(super) struct Seal {
    own: Uuid,
    /// Over the contract between the replicas. The first one seals; each of them opens.
    keys: Vec<Hmac<Sha256>>,
}

/// A message that a replica with the shared key and the same contract sent to this one a moment ago.
#[derive(Debug, PartialEq)]
pub(super) struct Opened<M> {
    pub(super) from: Uuid,
    pub(super) exchange: Uuid,
    pub(super) content: M,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sealed {
    #[prost(bytes = "vec", tag = "1")]
    mac: Vec<u8>,
    /// A [`Body`].
    #[prost(bytes = "vec", tag = "2")]
    body: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(bytes = "vec", tag = "1")]
    from: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    to: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    exchange: Vec<u8>,
    /// Microseconds since 1970.
    #[prost(int64, tag = "4")]
    sent_at_us: i64,
    #[prost(bytes = "vec", tag = "5")]
    content: Vec<u8>,
}

impl Seal {
    pub(super) fn new(own: Uuid, keys: &[SecretKey], contract: &[u8; 32]) -> Self {
        let mac = |key: &SecretKey| {
            let mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
            mac.chain_update(contract)
        };
        Self {
            own,
            keys: keys.iter().map(mac).collect(),
        }
    }

    /// A message to everybody.
    pub(super) fn announcement(&self, content: &impl Message, now: OffsetDateTime) -> Vec<u8> {
        self.seal(Kind::Announcement, EVERYBODY, Uuid::nil(), content, now)
    }

    /// A message to one replica. An answer repeats the exchange of the question.
    pub(super) fn seal(
        &self,
        kind: Kind,
        to: Uuid,
        exchange: Uuid,
        content: &impl Message,
        now: OffsetDateTime,
    ) -> Vec<u8> {
        let body = Body {
            from: self.own.into_bytes().to_vec(),
            to: to.into_bytes().to_vec(),
            exchange: exchange.into_bytes().to_vec(),
            sent_at_us: microseconds(now),
            content: content.encode_to_vec(),
        };
        let body = body.encode_to_vec();
        let key = self.keys.first().expect("there is always a key");
        let mac = over(key, kind, &body).finalize().into_bytes().to_vec();
        Sealed { mac, body }.encode_to_vec()
    }

    /// Opens a message; `None` when it is not of this kind, not for this replica, too old, or not from such a replica.
    pub(super) fn open<M: Message + Default>(
        &self,
        kind: Kind,
        message: &[u8],
        now: OffsetDateTime,
    ) -> Option<Opened<M>> {
        let Sealed { mac, body } = Sealed::decode(message).ok()?;
        let is_authentic = self
            .keys
            .iter()
            .any(|key| over(key, kind, &body).verify_slice(&mac).is_ok());
        let body = is_authentic.then(|| Body::decode(&*body))?.ok()?;
        let to = if kind == Kind::Announcement {
            EVERYBODY
        } else {
            self.own
        };
        let age = Duration::microseconds(microseconds(now).saturating_sub(body.sent_at_us));
        if body.to != to.as_bytes() || age < -SKEW_MAX || age > AGE_MAX + SKEW_MAX {
            return None;
        }
        Some(Opened {
            from: Uuid::from_slice(&body.from).ok()?,
            exchange: Uuid::from_slice(&body.exchange).ok()?,
            content: M::decode(&*body.content).ok()?,
        })
    }
}

fn over(key: &Hmac<Sha256>, kind: Kind, body: &[u8]) -> Hmac<Sha256> {
    key.clone().chain_update([kind as u8]).chain_update(body)
}

fn microseconds(moment: OffsetDateTime) -> i64 {
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).expect("a moment of the clock fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SecretKey = SecretKey::new(*b"0123456789abcdef0123456789abcdef");
    const OLD_KEY: SecretKey = SecretKey::new(*b"fedcba9876543210fedcba9876543210");
    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-20 09:30 UTC);
    const EXCHANGE: Uuid = Uuid::from_u128(99);

    fn replica(number: u128, keys: &[SecretKey]) -> Seal {
        Seal::new(Uuid::from_u128(number), keys, &[1; 32])
    }

    fn command() -> Vec<u8> {
        replica(1, &[KEY]).seal(
            Kind::Command,
            Uuid::from_u128(2),
            EXCHANGE,
            &"place".to_owned(),
            NOW,
        )
    }

    fn open(by: &Seal, kind: Kind, message: &[u8], now: OffsetDateTime) -> Option<Opened<String>> {
        by.open(kind, message, now)
    }

    #[test]
    fn the_receiver_opens_what_was_sealed_for_it() {
        let opened = open(&replica(2, &[KEY]), Kind::Command, &command(), NOW);
        let expected = Opened {
            from: Uuid::from_u128(1),
            exchange: EXCHANGE,
            content: "place".to_owned(),
        };
        assert_eq!(opened, Some(expected));
    }

    #[test]
    fn a_message_is_good_for_no_other_replica_and_no_other_purpose() {
        assert_eq!(open(&replica(3, &[KEY]), Kind::Command, &command(), NOW), None);
        assert_eq!(open(&replica(2, &[KEY]), Kind::Answer, &command(), NOW), None);
        assert_eq!(
            open(&replica(2, &[KEY]), Kind::Announcement, &command(), NOW),
            None
        );
        let announced = replica(1, &[KEY]).announcement(&"here".to_owned(), NOW);
        assert!(open(&replica(3, &[KEY]), Kind::Announcement, &announced, NOW).is_some());
        assert_eq!(open(&replica(3, &[KEY]), Kind::Command, &announced, NOW), None);
    }

    #[test]
    fn a_message_is_good_for_a_moment_whichever_clock_is_ahead() {
        let receiver = replica(2, &[KEY]);
        for milliseconds in [-500, 0, 1_500] {
            let now = NOW + Duration::milliseconds(milliseconds);
            assert!(
                open(&receiver, Kind::Command, &command(), now).is_some(),
                "{milliseconds}"
            );
        }
        for milliseconds in [-501, 1_501, 3_600_000] {
            let now = NOW + Duration::milliseconds(milliseconds);
            assert_eq!(
                open(&receiver, Kind::Command, &command(), now),
                None,
                "{milliseconds}"
            );
        }
    }

    #[test]
    fn a_changed_byte_or_another_key_is_refused() {
        let message = command();
        for place in 0..message.len() {
            let mut changed = message.clone();
            changed[place] ^= 1;
            assert_eq!(
                open(&replica(2, &[KEY]), Kind::Command, &changed, NOW),
                None,
                "byte {place}"
            );
        }
        assert_eq!(open(&replica(2, &[OLD_KEY]), Kind::Command, &message, NOW), None);
        assert_eq!(open(&replica(2, &[KEY]), Kind::Command, &[], NOW), None);
    }

    #[test]
    fn a_replica_with_another_contract_is_ignored() {
        let newer = Seal::new(Uuid::from_u128(2), &[KEY], &[2; 32]);
        assert_eq!(open(&newer, Kind::Command, &command(), NOW), None);
    }

    #[test]
    fn while_keys_are_exchanged_the_old_one_still_opens() {
        let opened = open(&replica(2, &[OLD_KEY, KEY]), Kind::Command, &command(), NOW);
        assert!(opened.is_some());
    }
}
