//! Postal addresses.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::{InvalidText, TextProblem, deserialize_parsed};

/// The most bytes in a name, a street line or a town.
pub const ADDRESS_TEXT_BYTES_MAX: usize = 128;
/// The most street lines.
pub const ADDRESS_LINES_MAX: usize = 3;
/// The most bytes in a postal code.
pub const POSTAL_CODE_BYTES_MAX: usize = 16;

text!(
    /// A name, a street line or a town.
    AddressText, "address text", Line, Bytes(ADDRESS_TEXT_BYTES_MAX)
);
text!(
    /// A postal code.
    PostalCode, "postal code", Line, Bytes(POSTAL_CODE_BYTES_MAX)
);

/// The ISO 3166-1 alpha-2 code of a country, in capitals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Country(&'static str);

impl Country {
    /// Takes a code that the standard assigns to a country.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let known = COUNTRIES.binary_search(&text).map(|index| Self(COUNTRIES[index]));
        known.map_err(|_| InvalidText {
            kind: "country",
            problem: TextProblem::NotInStandard("ISO 3166-1 alpha-2"),
        })
    }

    /// The code.
    pub fn as_str(&self) -> &'static str {
        self.0
    }
}

impl FromStr for Country {
    type Err = InvalidText;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Country {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Country {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_parsed(deserializer)
    }
}

/// Where an order goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Address {
    name: AddressText,
    lines: Vec<AddressText>,
    city: AddressText,
    #[serde(skip_serializing_if = "Option::is_none")]
    postal_code: Option<PostalCode>,
    country: Country,
}

/// The number of street lines is not between 1 and [`ADDRESS_LINES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an address must have 1 to {ADDRESS_LINES_MAX} street lines, not {count}")]
pub struct InvalidLineCount {
    /// How many there were.
    pub count: usize,
}

impl Address {
    /// Puts an address together; its parts are valid already, only the number of street lines is left to
    /// check.
    pub fn new(
        name: AddressText,
        lines: Vec<AddressText>,
        city: AddressText,
        postal_code: Option<PostalCode>,
        country: Country,
    ) -> Result<Self, InvalidLineCount> {
        if lines.is_empty() || lines.len() > ADDRESS_LINES_MAX {
            return Err(InvalidLineCount { count: lines.len() });
        }
        Ok(Self {
            name,
            lines,
            city,
            postal_code,
            country,
        })
    }

    /// Who receives it.
    pub fn name(&self) -> &AddressText {
        &self.name
    }

    /// Street and number, 1 to [`ADDRESS_LINES_MAX`] lines.
    pub fn lines(&self) -> &[AddressText] {
        &self.lines
    }

    /// The town.
    pub fn city(&self) -> &AddressText {
        &self.city
    }

    /// The postal code, where there is one.
    pub fn postal_code(&self) -> Option<&PostalCode> {
        self.postal_code.as_ref()
    }

    /// The country.
    pub fn country(&self) -> Country {
        self.country
    }
}

/// An address as it is stored, before its lines are counted.
#[derive(Deserialize)]
struct Unchecked {
    name: AddressText,
    lines: Vec<AddressText>,
    city: AddressText,
    postal_code: Option<PostalCode>,
    country: Country,
}

impl TryFrom<Unchecked> for Address {
    type Error = InvalidLineCount;

    fn try_from(parts: Unchecked) -> Result<Self, Self::Error> {
        Self::new(
            parts.name,
            parts.lines,
            parts.city,
            parts.postal_code,
            parts.country,
        )
    }
}

/// The officially assigned codes, in order.
#[rustfmt::skip]
static COUNTRIES: [&str; 249] = [
    "AD", "AE", "AF", "AG", "AI", "AL", "AM", "AO", "AQ", "AR", "AS", "AT", "AU", "AW", "AX", "AZ",
    "BA", "BB", "BD", "BE", "BF", "BG", "BH", "BI", "BJ", "BL", "BM", "BN", "BO", "BQ", "BR", "BS",
    "BT", "BV", "BW", "BY", "BZ", "CA", "CC", "CD", "CF", "CG", "CH", "CI", "CK", "CL", "CM", "CN",
    "CO", "CR", "CU", "CV", "CW", "CX", "CY", "CZ", "DE", "DJ", "DK", "DM", "DO", "DZ", "EC", "EE",
    "EG", "EH", "ER", "ES", "ET", "FI", "FJ", "FK", "FM", "FO", "FR", "GA", "GB", "GD", "GE", "GF",
    "GG", "GH", "GI", "GL", "GM", "GN", "GP", "GQ", "GR", "GS", "GT", "GU", "GW", "GY", "HK", "HM",
    "HN", "HR", "HT", "HU", "ID", "IE", "IL", "IM", "IN", "IO", "IQ", "IR", "IS", "IT", "JE", "JM",
    "JO", "JP", "KE", "KG", "KH", "KI", "KM", "KN", "KP", "KR", "KW", "KY", "KZ", "LA", "LB", "LC",
    "LI", "LK", "LR", "LS", "LT", "LU", "LV", "LY", "MA", "MC", "MD", "ME", "MF", "MG", "MH", "MK",
    "ML", "MM", "MN", "MO", "MP", "MQ", "MR", "MS", "MT", "MU", "MV", "MW", "MX", "MY", "MZ", "NA",
    "NC", "NE", "NF", "NG", "NI", "NL", "NO", "NP", "NR", "NU", "NZ", "OM", "PA", "PE", "PF", "PG",
    "PH", "PK", "PL", "PM", "PN", "PR", "PS", "PT", "PW", "PY", "QA", "RE", "RO", "RS", "RU", "RW",
    "SA", "SB", "SC", "SD", "SE", "SG", "SH", "SI", "SJ", "SK", "SL", "SM", "SN", "SO", "SR", "SS",
    "ST", "SV", "SX", "SY", "SZ", "TC", "TD", "TF", "TG", "TH", "TJ", "TK", "TL", "TM", "TN", "TO",
    "TR", "TT", "TV", "TW", "TZ", "UA", "UG", "UM", "US", "UY", "UZ", "VA", "VC", "VE", "VG", "VI",
    "VN", "VU", "WF", "WS", "YE", "YT", "ZA", "ZM", "ZW",
];
