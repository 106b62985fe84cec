//! Tickets: what stands for a credential in the address of a stream, for browsers, whose `EventSource` cannot send headers.
//!
//! A ticket is sealed. It names the tenant and the credential that it was given to, and when; it is bound to one address: the
//! path of the stream and its parameters, but for those that say where to resume. It holds no secret, and whoever uses it is
//! who its credential says at that moment: a credential that is revoked takes its tickets with it.
//!
//! A ticket opens its stream within [`TICKET_LIFETIME`]. After that it is good only for going on with a stream that it has
//! opened: the route asks for a position that was given out there ([`Ticket::id`]).

use std::time::Duration;

use axum::extract::Query;
use http::Uri;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::identity::Principal;
use crate::sealing::{KeyRing, Purpose};

/// How long a ticket may wait to be used.
pub const TICKET_LIFETIME: Duration = Duration::from_mins(1);

/// The parameter that carries a ticket.
const TICKET: &str = "ticket";

/// The parameter that carries the position to resume behind, for those who cannot set headers.
pub const LAST_EVENT_ID: &str = "last_event_id";

/// Gives tickets out and opens them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tickets(KeyRing);

/// An opened ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The ticket's own id: positions of a stream that it has opened are bound to it.
    pub id: Uuid,
    /// The tenant that it was given to.
    pub tenant_id: Uuid,
    /// The public prefix of the credential that it was given to.
    pub key_prefix: String,
    /// When, in seconds since 1970.
    issued_at: i64,
}

impl Ticket {
    /// Whether it still opens a stream that was not open before.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.is_fresh_at(OffsetDateTime::now_utc().unix_timestamp())
    }

    /// Clocks of replicas differ a little: a ticket from what looks like the near future is as good as a new one. One from further
    /// ahead is of before a clock was set back.
    fn is_fresh_at(&self, now: i64) -> bool {
        now.abs_diff(self.issued_at) <= TICKET_LIFETIME.as_secs()
    }

    fn encode(&self) -> Vec<u8> {
        [
            &self.id.as_bytes()[..],
            self.tenant_id.as_bytes(),
            &self.issued_at.to_be_bytes(),
            self.key_prefix.as_bytes(),
        ]
        .concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk()?;
        let (tenant_id, rest) = rest.split_first_chunk()?;
        let (issued_at, key_prefix) = rest.split_first_chunk()?;
        Some(Self {
            id: Uuid::from_bytes(*id),
            tenant_id: Uuid::from_bytes(*tenant_id),
            issued_at: i64::from_be_bytes(*issued_at),
            key_prefix: String::from_utf8(key_prefix.to_vec()).ok()?,
        })
    }
}

impl Tickets {
    /// Tickets that are sealed with this ring.
    #[must_use]
    pub fn new(ring: KeyRing) -> Self {
        Self(ring)
    }

    /// A ticket for a caller and the stream at an address, given out now.
    #[must_use]
    pub fn issue(&self, caller: &Principal, address: &Uri, now: OffsetDateTime) -> String {
        let ticket = Ticket {
            id: Uuid::now_v7(),
            tenant_id: caller.tenant_id,
            key_prefix: caller.key_prefix.clone(),
            issued_at: now.unix_timestamp(),
        };
        let bound_to = fingerprint(address);
        self.0
            .seal_afresh(Purpose::StreamTicket, &bound_to, &ticket.encode())
    }

    /// The ticket in an address, if that has one that was given out for it.
    pub(crate) fn open(&self, address: &Uri) -> Option<Ticket> {
        let text = parameters(address).find_map(|(name, value)| (name == TICKET).then_some(value))?;
        let content = self.0.open(Purpose::StreamTicket, &fingerprint(address), &text)?;
        Ticket::decode(&content)
    }
}

fn parameters(address: &Uri) -> impl Iterator<Item = (String, String)> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(address);
    pairs.map(|Query(pairs)| pairs).unwrap_or_default().into_iter()
}

/// The digest of the address that a ticket is bound to. Names and values are written with their lengths, so that none
/// can pass for another.
fn fingerprint(address: &Uri) -> [u8; 32] {
    let stays = |(name, _): &(String, String)| name != TICKET && name != LAST_EVENT_ID;
    let mut hash = Sha256::new();
    let mut write = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    write(address.path());
    for (name, value) in parameters(address).filter(stays) {
        write(&name);
        write(&value);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ScopeSet;
    use crate::key::SecretKey;

    const STREAM: &str = "/v1/events/stream?type=order.placed";

    fn tickets() -> Tickets {
        Tickets::new(KeyRing::new(&[SecretKey::DEVELOPMENT]))
    }

    fn address(text: &str) -> Uri {
        text.parse().expect("a valid address")
    }

    fn issued() -> String {
        let caller = Principal {
            tenant_id: Uuid::from_u128(7),
            tenant_partition: 0,
            key_prefix: "ab345678".to_owned(),
            name: "test".to_owned(),
            scopes: ScopeSet::default(),
        };
        tickets().issue(&caller, &address(STREAM), OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_ticket_opens_in_its_own_address_wherever_that_resumes() {
        let text = issued();
        for rest in ["", "&last_event_id=abc"] {
            let ticket = tickets().open(&address(&format!("{STREAM}&ticket={text}{rest}")));
            let ticket = ticket.expect("it was given out for this");
            assert_eq!(
                (ticket.tenant_id, ticket.key_prefix.as_str()),
                (Uuid::from_u128(7), "ab345678")
            );
        }
    }

    #[test]
    fn a_ticket_opens_in_no_other_address() {
        let text = issued();
        for other in [
            "/v1/events/stream?",
            "/v1/events/stream?type=order.cancelled&",
            "/v1/events/stream?type=order.placed&type=order.cancelled&",
            "/v1/events/stream?typ=eorder.placed&",
            "/v1/orders/stream?type=order.placed&",
        ] {
            let opened = tickets().open(&address(&format!("{other}ticket={text}")));
            assert_eq!(opened, None, "{other}");
        }
        assert_eq!(tickets().open(&address(STREAM)), None);
        assert_eq!(tickets().open(&address(&format!("{STREAM}&ticket=x"))), None);
    }

    #[test]
    fn a_ticket_is_fresh_for_a_minute_also_where_the_clock_was_set_back() {
        let ticket = Ticket {
            id: Uuid::nil(),
            tenant_id: Uuid::nil(),
            key_prefix: String::new(),
            issued_at: 1_000,
        };
        assert!(ticket.is_fresh_at(940) && ticket.is_fresh_at(1_060));
        assert!(!ticket.is_fresh_at(1_061));
        assert!(
            !ticket.is_fresh_at(939),
            "it was given out before the clock was set back"
        );
    }
}
