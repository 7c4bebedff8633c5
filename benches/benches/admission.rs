//! What a request and its events cost ingest beside the envelope: the key and the rates, and the partition.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use floodway_benches::{TENANT, defaults, sample_event};
use floodway_ingest::benchmarks::{Admission, Placement};
use floodway_schemas::{
    UnixMillis, api_key,
    config::{ApiKeyRecord, ApiKeyState, CONFIG_VERSION, ConfigChange, Tenant, TenantState},
    event::EventInput,
    ids::ApiKeyId,
};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use secrecy::ExposeSecret;
use std::{hint::black_box, num::NonZeroU32};

const NOW: UnixMillis = UnixMillis(1_795_275_240_123);
const KEY: ApiKeyId = ApiKeyId(uuid::uuid!("01938f2e-0000-7000-8000-000000000004"));
const PARTITIONS: i32 = 8;

fn admission(c: &mut Criterion) {
    for (name, rate) in [("without limits", None), ("with limits", Some(NonZeroU32::MAX))] {
        let (headers, changes) = caller(rate);
        let admission = Admission::new(changes);
        assert!(admission.admit(&headers, 1, NOW));
        c.bench_function(&format!("admit, {name}"), |b| {
            b.iter(|| admission.admit(black_box(&headers), black_box(1), NOW));
        });
    }
}

fn placement(c: &mut Criterion) {
    let input = sample_event(1, 500);
    let Ok(event) = EventInput::parse(input.as_bytes()) else { return };
    let event = event.complete(defaults());
    let (placement, mut key) = (Placement::new(PARTITIONS), Vec::new());
    c.bench_function("key and partition", |b| {
        b.iter(|| {
            key.clear();
            black_box(&event).encode_key(&mut key);
            placement.place(&key, 700)
        });
    });
}

/// A request's headers, and the configuration that lets it in.
fn caller(rate: Option<NonZeroU32>) -> (HeaderMap, [ConfigChange; 2]) {
    let Ok((text, hash)) = api_key::compose("live", KEY, &[7; 32]) else {
        panic!("the environment's name is a valid one");
    };
    let Ok(bearer) = HeaderValue::try_from(format!("Bearer {}", text.expose_secret())) else {
        panic!("a key is a header's value");
    };
    let tenant = Tenant {
        v: CONFIG_VERSION,
        version: 1,
        id: TENANT,
        name: "benchmark".to_owned(),
        state: TenantState::Active,
        events_per_second: rate,
        requests_per_second: rate,
    };
    let key = ApiKeyRecord {
        v: CONFIG_VERSION,
        version: 1,
        id: KEY,
        tenant: TENANT,
        hash,
        state: ApiKeyState::Active,
        expires_at: None,
        events_per_second: None,
        requests_per_second: None,
    };
    (
        HeaderMap::from_iter([(AUTHORIZATION, bearer)]),
        [ConfigChange::Tenant(tenant), ConfigChange::ApiKey(key)],
    )
}

criterion_group!(benches, admission, placement);
criterion_main!(benches);
