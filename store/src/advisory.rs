//! Advisory locks: their keys in one place, so that no two uses collide. They are scoped to one database.

/// Held by a session that applies migrations, so that replicas that start together take turns.
pub const MIGRATIONS: i64 = 0x666c_6f6f_6477_0001;

/// Held by every transaction that writes configuration. Writers take turns, so outbox ids become visible in order and
/// without gaps, and no publisher can overtake a transaction that is still open.
pub const CONFIGURATION: i64 = 0x666c_6f6f_6477_0002;

/// Held by the session of the one control plane that publishes the outbox.
pub const PUBLISHER: i64 = 0x666c_6f6f_6477_0003;

/// Held by the session of the one retry scheduler that creates and drops partitions.
pub const PARTITIONS: i64 = 0x666c_6f6f_6477_0004;
