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

/// The shipping address of an order.
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

    /// The recipient's name.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> AddressText {
        text.parse().expect("short and plain")
    }

    fn address(lines: usize) -> Result<Address, InvalidLineCount> {
        let country = Country::parse("GB").expect("a country");
        Address::new(
            text("Ada"),
            vec![text("12 St James's Square"); lines],
            text("London"),
            None,
            country,
        )
    }

    #[test]
    fn the_countries_are_in_order_so_that_they_can_be_found() {
        assert!(COUNTRIES.is_sorted_by(|a, b| a < b));
        for code in COUNTRIES {
            assert_eq!(Country::parse(code).map(|country| country.as_str()), Ok(code));
        }
    }

    #[test]
    fn what_is_not_the_code_of_a_country_is_refused() {
        for code in ["", "G", "GBR", "gb", "UK", "XX", "EU"] {
            assert!(Country::parse(code).is_err(), "{code}");
        }
    }

    #[test]
    fn an_address_has_one_to_three_street_lines() {
        assert_eq!(address(0), Err(InvalidLineCount { count: 0 }));
        assert!(address(1).is_ok());
        assert!(address(ADDRESS_LINES_MAX).is_ok());
        assert_eq!(address(4), Err(InvalidLineCount { count: 4 }));
    }

    #[test]
    fn the_parts_of_an_address_are_limited_in_bytes() {
        assert!(AddressText::parse(&"x".repeat(128)).is_ok());
        assert!(AddressText::parse(&"x".repeat(129)).is_err());
        assert!(PostalCode::parse(&"x".repeat(16)).is_ok());
        assert!(PostalCode::parse(&"x".repeat(17)).is_err());
    }

    #[test]
    fn a_stored_address_is_checked_when_it_is_read() {
        let stored =
            |lines: &str| format!(r#"{{"name":"Ada","lines":{lines},"city":"London","country":"GB"}}"#);
        let valid = stored(r#"["12 St James's Square"]"#);
        let read = serde_json::from_str::<Address>(&valid).expect("valid");
        assert_eq!(Ok(&read), address(1).as_ref());
        assert_eq!(serde_json::to_string(&read).expect("plain data"), valid);
        assert!(serde_json::from_str::<Address>(&stored("[]")).is_err());
        assert!(serde_json::from_str::<Address>(&stored(r#"["1","2","3","4"]"#)).is_err());
    }
}
