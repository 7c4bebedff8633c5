//! The runtime against a real broker.
#![allow(missing_docs)]

mod config_feed;
mod topics;
