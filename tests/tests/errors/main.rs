//! What is refused, everywhere: the code of the catalogue, a request id, and not an event in the log.

mod both_transports;
mod commands;
mod deprecated;
mod described;
mod every_method;
mod http;
mod http_commands;
