//! Samples that the benchmarks share: events of a realistic shape and of a given size.

use floodway_schemas::{UnixMillis, event::Defaults, ids::TenantId};

/// A tenant.
pub const TENANT: TenantId = TenantId(uuid::uuid!("01938f2e-0000-7000-8000-000000000001"));

/// One event of about `bytes` bytes, as a producer sends it.
pub fn sample_event(index: usize, bytes: usize) -> String {
    let filler = "x".repeat(bytes.saturating_sub(180));
    format!(
        "{{\"type\":\"order.created\",\"id\":\"order-{index}\",\"partitionkey\":\"customer-{}\",\
         \"data\":{{\"order\":{index},\"amount\":12.50,\"currency\":\"EUR\",\"lines\":[{{\"sku\":\"A-1\",\"count\":2}}],\
         \"note\":\"{filler}\"}}}}",
        index % 1000
    )
}

/// What ingest fills in.
pub fn defaults() -> Defaults<'static> {
    Defaults {
        tenant: TENANT,
        id: "01938f2e-0000-7000-8000-0000000000ff",
        source: "01938f2e-0000-7000-8000-000000000004",
        received_at: UnixMillis(1_795_275_240_123),
    }
}
