//! Floors: the least that two parts of ingest's work cost. One is a bare HTTP server that reads and answers the same
//! requests, the other a bare Kafka producer that writes the same records. Ingest can hardly cost less than both
//! together; how much more it costs is what its own code adds.

pub mod http;
pub mod producer;
