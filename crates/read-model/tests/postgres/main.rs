//! The statements of the read models on a real Postgres with the real schema: what is stored is loaded, lists are paged
//! without hole or repetition from indexes, and no tenant sees another's rows.

mod database;
mod history;
mod lists;
mod plans;
mod queries;
mod rows;
