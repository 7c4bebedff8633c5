//! Signing a request's body: HMAC-SHA256 (`v1`) and Ed25519 (`v1a`).
#![allow(missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the source of the dispatcher as it is, of which the benchmark uses a part"
)]

#[path = "../../dispatcher/src/sign.rs"]
mod sign;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodway_schemas::{
    UnixMillis,
    config::{SigningSecret, Subscription},
    seal::SealingKeys,
};
use sign::SigningKeys;
use std::hint::black_box;

/// A subscription with the fields that signing does not look at.
const SUBSCRIPTION: &str = include_str!("../../schemas/golden/config-subscription.json");
/// The secrets of the published test vectors.
const HMAC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ED25519: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
/// A key that seals nothing but these.
const SEALING_KEY: &str = "bench:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn keys(secret: &str) -> Option<SigningKeys> {
    let sealing = SealingKeys::parse(&SEALING_KEY.to_owned().into()).ok()?;
    let mut subscription: Subscription = serde_json::from_str(SUBSCRIPTION).ok()?;
    let sealed = sealing.seal(&secret.to_owned().into(), &subscription.id.to_string(), [7; 12]).ok()?;
    subscription.secrets = vec![SigningSecret { sealed, public_key: None, expires_at: None }];
    Some(SigningKeys::open(&subscription, &sealing))
}

fn signing(c: &mut Criterion) {
    let mut group = c.benchmark_group("signing");
    for (scheme, secret) in [("v1", HMAC), ("v1a", ED25519)] {
        let Some(keys) = keys(secret) else { continue };
        for bytes in [500, 64 * 1024] {
            let body = vec![b'x'; bytes];
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(format!("{scheme} of {bytes} B"), |b| {
                b.iter(|| {
                    keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_795_275_240, black_box(&body), UnixMillis(0))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, signing);
criterion_main!(benches);
