//! The business rules of Daybook, and nothing else: aggregates that turn commands into events, and the values
//! they are written in.
//!
//! Pure and synchronous: no IO, no async, no clock, no randomness. Time and ids come in with a command. Each
//! aggregate is one module with the same shape: a `Command`, an `Event`, a `Rejection`, and a `State` that
//! implements [`aggregate::Aggregate`]: `decide` says what happens, `evolve` says what that means.

// These three come first because they bring the macros that the others are declared with.
#[macro_use]
pub mod event;
#[macro_use]
pub mod rejection;
#[macro_use]
pub mod text;

pub mod address;
pub mod aggregate;
pub mod aggregates;
pub mod ids;
pub mod money;
pub mod order;
pub mod stock;

#[cfg(test)]
mod samples;
