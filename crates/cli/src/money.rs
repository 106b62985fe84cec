//! Amounts of money as people write them.

use iso_currency::Currency;

/// Minor units of a currency with the decimals that ISO 4217 gives it: 6900 is `69.00 EUR`, but `6900 JPY`. A currency that is
/// not known here has its minor units named as such.
pub(crate) fn amount(minor: i64, currency: &str) -> String {
    match Currency::from_code(currency).and_then(Currency::exponent) {
        Some(decimals) => format!("{} {currency}", decimal(minor, decimals.into())),
        None => format!("{minor} {currency} (minor units)"),
    }
}

/// A number of minor units with the point in its place.
fn decimal(minor: i64, decimals: usize) -> String {
    let sign = if minor < 0 { "-" } else { "" };
    // One digit more than there are decimals, so that one stands before the point.
    let width = decimals + 1;
    let digits = format!("{:0width$}", minor.unsigned_abs());
    match digits.split_at(digits.len() - decimals) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_the_decimals_of_its_currency() {
        for (minor, currency, shown) in [
            (6_900, "EUR", "69.00 EUR"),
            (6_900, "JPY", "6900 JPY"),
            (6_900, "KWD", "6.900 KWD"),
            (7, "USD", "0.07 USD"),
            (0, "CLF", "0.0000 CLF"),
            (-120, "USD", "-1.20 USD"),
            (i64::MIN, "USD", "-92233720368547758.08 USD"),
        ] {
            assert_eq!(amount(minor, currency), shown);
        }
    }

    #[test]
    fn a_currency_without_decimals_of_its_own_keeps_minor_units() {
        assert_eq!(amount(5, "QQQ"), "5 QQQ (minor units)");
    }
}
