//! Floors: the least that parts of the work cost. For ingest, a bare HTTP server that reads and answers the same requests,
//! and a bare Kafka producer that writes the same records; ingest can hardly cost less than both together. For the
//! dispatcher, a bare HTTP client that signs and posts the same webhooks. How much more they cost is what their own code
//! adds.

pub mod client;
pub mod http;
pub mod producer;
