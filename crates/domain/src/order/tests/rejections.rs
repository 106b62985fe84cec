//! Rejections as callers see them, and that they can be remembered.

use super::*;
use crate::rejection::Rejection as _;

fn some_rejections() -> Vec<Rejection> {
    vec![
        Rejection::OrderNotFound,
        Rejection::OrderAlreadyShipped {
            status: Status::PartiallyShipped,
        },
        Rejection::AmountOverflow,
        Rejection::LineNotFound { line_number: 3 },
        Rejection::PaymentAlreadyRecorded {
            payment_id: text("p-1"),
        },
        Rejection::PaymentExceedsTotal {
            amount_minor: 5,
            paid_minor: 8,
            total_minor: 10,
            currency: usd(),
        },
        Rejection::TooManyLines { line_count: 501 },
        Rejection::CurrencyMismatch {
            expected: usd(),
            actual: text("EUR"),
        },
    ]
}

#[test]
fn a_rejection_names_every_value_that_its_rule_looked_at() {
    let rejection = Rejection::PaymentExceedsTotal {
        amount_minor: 5,
        paid_minor: 8,
        total_minor: 10,
        currency: usd(),
    };
    assert_eq!(rejection.code(), "PAYMENT_EXCEEDS_TOTAL");
    assert_eq!(
        rejection.to_string(),
        "5 on top of 8 already paid exceed the total of 10 minor units of USD"
    );
    let expected = [
        ("amount_minor", "5"),
        ("paid_minor", "8"),
        ("total_minor", "10"),
        ("currency", "USD"),
    ];
    assert_eq!(
        rejection.details(),
        expected.map(|(name, value)| (name, value.to_owned()))
    );
}

#[test]
fn a_rejection_without_values_has_no_details() {
    assert_eq!(Rejection::OrderNotFound.details(), []);
}

#[test]
fn a_remembered_rejection_is_restored_as_it_was() {
    for rejection in some_rejections() {
        let json = serde_json::to_string(&rejection).expect("rejections are plain data");
        assert_eq!(
            serde_json::from_str::<Rejection>(&json).expect("what was written can be read"),
            rejection
        );
        assert!(
            json.starts_with(&format!(r#"{{"code":"{}""#, rejection.code())),
            "{json}"
        );
    }
}

#[test]
fn every_detail_is_in_the_message() {
    for rejection in some_rejections() {
        for (name, value) in rejection.details() {
            assert!(
                rejection.to_string().contains(&value),
                "{name} is missing in {rejection}"
            );
        }
    }
}
