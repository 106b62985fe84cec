//! The business rules of Daybook, and nothing else: aggregates that turn commands into events, and the values
//! they are written in.
//!
//! Pure and synchronous: no IO, no async, no clock, no randomness. Time and ids come in with a command. Each
//! aggregate is one module with the same shape: `decide(&State, Command) -> Result<Vec<Event>, Rejection>`
//! says what happens, `evolve(State, &Event) -> State` says what that means, and folding a stream with
//! `evolve` over `State::default()` is how an aggregate is loaded.

// These three come first because they bring the macros that the others are declared with.
#[macro_use]
pub mod event;
#[macro_use]
mod rejection;
#[macro_use]
pub mod text;

pub mod address;
pub mod ids;
pub mod money;
pub mod order;
