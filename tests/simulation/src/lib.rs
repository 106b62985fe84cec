//! The simulation of the write side: `tests/seeds` runs mailboxes and appenders against a model of the log.
//!
//! It is a crate of its own because it is optimised, unlike other tests: it tries a hundred thousand seeds.
//!
//! | module | what it gives |
//! |---|---|
//! | [`model`] | the log as the simulation has it |
//! | [`meaning`] | whether each event of a log follows from those before it, by the rules of its own domain |

pub mod meaning;
pub mod model;
