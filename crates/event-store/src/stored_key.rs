//! How idempotency keys are stored: as bytes that sort as their texts do.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};
use uuid::Uuid;

/// An idempotency key as `event_store.command` holds it: a zero byte and 16 bytes for a UUID in its usual form, a one and
/// the text for anything else. The order of the variants is that of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StoredKey<'a> {
    /// Lower case, with hyphens: any other form of the same UUID is another key.
    Uuid(Uuid),
    Text(&'a str),
}

impl<'a> StoredKey<'a> {
    pub(crate) fn new(key: &'a str) -> Self {
        let mut usual_form = Uuid::encode_buffer();
        match Uuid::try_parse(key) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut usual_form) == key => Self::Uuid(uuid),
            _ => Self::Text(key),
        }
    }
}

impl Type<Postgres> for StoredKey<'_> {
    fn type_info() -> PgTypeInfo {
        <Vec<u8> as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for StoredKey<'_> {
    fn array_type_info() -> PgTypeInfo {
        <Vec<u8> as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for StoredKey<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match self {
            Self::Uuid(uuid) => {
                buffer.push(0);
                buffer.extend_from_slice(uuid.as_bytes());
            }
            Self::Text(text) => {
                buffer.push(1);
                buffer.extend_from_slice(text.as_bytes());
            }
        }
        Ok(IsNull::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_in_its_usual_form_is_stored_as_one_and_every_other_key_as_its_text() {
        let text = "0192f0c1-7b1c-7d3a-8f00-0123456789ab";
        let uuid = Uuid::parse_str(text).expect("a UUID");
        assert_eq!(StoredKey::new(text), StoredKey::Uuid(uuid));
        let others = [
            text.to_uppercase(),
            uuid.simple().to_string(),
            uuid.braced().to_string(),
            uuid.urn().to_string(),
            format!("{text}0"),
            "order-17".to_owned(),
        ];
        for other in &others {
            assert_eq!(StoredKey::new(other), StoredKey::Text(other));
        }
    }

    #[test]
    fn stored_keys_sort_as_their_bytes_do() {
        let bytes = |key: &str| match StoredKey::new(key) {
            StoredKey::Uuid(uuid) => [&[0], uuid.as_bytes().as_slice()].concat(),
            StoredKey::Text(text) => [&[1], text.as_bytes()].concat(),
        };
        let mut keys: Vec<String> = (0..100)
            .map(|_| Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).to_string())
            .collect();
        keys.extend(["", "0", "zebra", "Zebra", "0192f0c1"].map(str::to_owned));
        for one in &keys {
            for other in &keys {
                let compared = StoredKey::new(one).cmp(&StoredKey::new(other));
                assert_eq!(compared, bytes(one).cmp(&bytes(other)), "{one} and {other}");
            }
        }
    }
}
