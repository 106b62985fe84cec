//! Money without fractions: integer minor units of an ISO 4217 currency, and only arithmetic that is checked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::{InvalidText, TextProblem, deserialize_parsed};

/// A currency: an active ISO 4217 code that has minor units. (Metals, test codes and the like have none, and
/// nothing is priced in them.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// Takes an active code, in capitals.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if CURRENCIES.binary_search(&&code).is_ok() => Ok(Self(code)),
            Ok(_) | Err(_) => Err(InvalidText {
                kind: "currency",
                problem: TextProblem::NotInStandard("ISO 4217"),
            }),
        }
    }

    /// The code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("the codes in the table are ASCII")
    }
}

impl FromStr for Currency {
    type Err = InvalidText;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_parsed(deserializer)
    }
}

/// An amount in minor units (cents for USD, yen for JPY) of a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// The amount in minor units.
    pub minor: i64,
    /// The currency of the amount.
    pub currency: Currency,
}

/// Why two amounts could not be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The result does not fit 64 bits.
    #[error("the amount is too large to be held in minor units")]
    Overflow,
    /// The amounts are in different currencies.
    #[error("an amount in {actual} was given where {expected} is used")]
    CurrencyMismatch {
        /// The currency of the amount that is there.
        expected: Currency,
        /// The currency of the amount that was to be put to it.
        actual: Currency,
    },
}

impl Money {
    /// An amount.
    pub fn new(minor: i64, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// Nothing, in a currency.
    pub fn zero(currency: Currency) -> Self {
        Self::new(0, currency)
    }

    /// The sum of two amounts in one currency.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        self.combine(other, i64::checked_add)
    }

    /// The difference of two amounts in one currency.
    pub fn checked_sub(self, other: Self) -> Result<Self, MoneyError> {
        self.combine(other, i64::checked_sub)
    }

    /// So many times the amount.
    pub fn checked_mul(self, times: u32) -> Result<Self, MoneyError> {
        let minor = self
            .minor
            .checked_mul(i64::from(times))
            .ok_or(MoneyError::Overflow)?;
        Ok(Self::new(minor, self.currency))
    }

    fn combine(self, other: Self, operation: fn(i64, i64) -> Option<i64>) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::CurrencyMismatch {
                expected: self.currency,
                actual: other.currency,
            });
        }
        let minor = operation(self.minor, other.minor).ok_or(MoneyError::Overflow)?;
        Ok(Self::new(minor, self.currency))
    }
}

/// The active codes that have minor units, in order.
#[rustfmt::skip]
static CURRENCIES: &[&[u8; 3]] = &[
    b"AED", b"AFN", b"ALL", b"AMD", b"AOA", b"ARS", b"AUD", b"AWG", b"AZN", b"BAM", b"BBD", b"BDT", b"BHD",
    b"BIF", b"BMD", b"BND", b"BOB", b"BOV", b"BRL", b"BSD", b"BTN", b"BWP", b"BYN", b"BZD", b"CAD", b"CDF",
    b"CHE", b"CHF", b"CHW", b"CLF", b"CLP", b"CNY", b"COP", b"COU", b"CRC", b"CUP", b"CVE", b"CZK", b"DJF",
    b"DKK", b"DOP", b"DZD", b"EGP", b"ERN", b"ETB", b"EUR", b"FJD", b"FKP", b"GBP", b"GEL", b"GHS", b"GIP",
    b"GMD", b"GNF", b"GTQ", b"GYD", b"HKD", b"HNL", b"HTG", b"HUF", b"IDR", b"ILS", b"INR", b"IQD", b"IRR",
    b"ISK", b"JMD", b"JOD", b"JPY", b"KES", b"KGS", b"KHR", b"KMF", b"KPW", b"KRW", b"KWD", b"KYD", b"KZT",
    b"LAK", b"LBP", b"LKR", b"LRD", b"LSL", b"LYD", b"MAD", b"MDL", b"MGA", b"MKD", b"MMK", b"MNT", b"MOP",
    b"MRU", b"MUR", b"MVR", b"MWK", b"MXN", b"MXV", b"MYR", b"MZN", b"NAD", b"NGN", b"NIO", b"NOK", b"NPR",
    b"NZD", b"OMR", b"PAB", b"PEN", b"PGK", b"PHP", b"PKR", b"PLN", b"PYG", b"QAR", b"RON", b"RSD", b"RUB",
    b"RWF", b"SAR", b"SBD", b"SCR", b"SDG", b"SEK", b"SGD", b"SHP", b"SLE", b"SOS", b"SRD", b"SSP", b"STN",
    b"SVC", b"SYP", b"SZL", b"THB", b"TJS", b"TMT", b"TND", b"TOP", b"TRY", b"TTD", b"TWD", b"TZS", b"UAH",
    b"UGX", b"USD", b"USN", b"UYI", b"UYU", b"UYW", b"UZS", b"VED", b"VES", b"VND", b"VUV", b"WST", b"XAD",
    b"XAF", b"XCD", b"XCG", b"XOF", b"XPF", b"YER", b"ZAR", b"ZMW", b"ZWG",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn currency(code: &str) -> Currency {
        code.parse().expect("an active code")
    }

    fn usd(minor: i64) -> Money {
        Money::new(minor, currency("USD"))
    }

    #[test]
    fn the_codes_are_in_order_so_that_they_can_be_found() {
        assert!(CURRENCIES.is_sorted_by(|a, b| a < b));
        for code in CURRENCIES {
            assert_eq!(currency(std::str::from_utf8(*code).expect("ASCII")).0, **code);
        }
    }

    #[test]
    fn codes_that_are_not_active_or_not_in_capitals_are_refused() {
        for code in [
            "", "US", "USDX", "usd", "Usd", "ZZZ", "DEM", "HRK", "XXX", "XAU", " USD", "€",
        ] {
            assert!(Currency::parse(code).is_err(), "{code}");
        }
    }

    #[test]
    fn amounts_in_one_currency_add_up() {
        assert_eq!(usd(5).checked_add(usd(7)), Ok(usd(12)));
        assert_eq!(usd(5).checked_sub(usd(7)), Ok(usd(-2)));
        assert_eq!(usd(5).checked_mul(7), Ok(usd(35)));
    }

    #[test]
    fn amounts_in_different_currencies_do_not_add_up() {
        let euros = Money::new(1, currency("EUR"));
        let mismatch = MoneyError::CurrencyMismatch {
            expected: currency("USD"),
            actual: currency("EUR"),
        };
        assert_eq!(usd(1).checked_add(euros), Err(mismatch));
        assert_eq!(usd(1).checked_sub(euros), Err(mismatch));
    }

    #[test]
    fn amounts_never_wrap() {
        assert_eq!(usd(i64::MAX).checked_add(usd(1)), Err(MoneyError::Overflow));
        assert_eq!(usd(i64::MIN).checked_sub(usd(1)), Err(MoneyError::Overflow));
        assert_eq!(usd(i64::MAX).checked_mul(2), Err(MoneyError::Overflow));
    }

    #[test]
    fn money_is_written_as_minor_units_and_currency() {
        let json = r#"{"minor":1177,"currency":"USD"}"#;
        assert_eq!(serde_json::to_string(&usd(1177)).expect("plain data"), json);
        assert_eq!(
            serde_json::from_str::<Money>(json).expect("plain data"),
            usd(1177)
        );
        assert!(serde_json::from_str::<Money>(r#"{"minor":11.77,"currency":"USD"}"#).is_err());
    }
}
