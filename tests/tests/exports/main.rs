//! Exports of events: the file is the feed, whatever crashes, and is told apart by its hash.

mod exports;
mod interrupted;
mod support;
