//! Configuration after a restore: what the `config` topic has and the tables do not.
//!
//! A database that comes back from a backup lacks the changes since. The topic has them, and every process acts on them. Left so, the
//! next change of such an entity would get a version that readers have seen, and they would ignore it. So the topic's state is
//! written to the tables as a change of its own, with the next version, and announced like any other.
//!
//! The control plane must not run meanwhile: see [`recover`].

use crate::{
    Error, Pool, api_keys,
    api_keys::ApiKeyRow,
    outbox::{self, ConfigurationWrite},
    subscriptions,
    subscriptions::SubscriptionRow,
    tenants,
    tenants::TenantRow,
};
use floodway_schemas::{
    UnixMillis,
    config::{ConfigChange, ConfigKey},
    ids::TenantId,
};
use std::collections::HashMap;
use uuid::Uuid;

/// Entities read from the tables at once.
const PAGE: i64 = 500;

/// Rows of the outbox that were not published when the backup was taken. There are next to none.
const PENDING: i64 = 10_000;

/// Longest time of the one transaction, for installations with tens of thousands of subscriptions, in milliseconds.
const TIMEOUT_MS: u32 = 300_000;

/// The state of the `config` topic, by entity. Deleted ones are not in it.
pub type TopicState = HashMap<ConfigKey, ConfigChange>;

/// What was done, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Entities that the tables lacked.
    pub created: usize,
    /// Entities that had changed since the backup.
    pub changed: usize,
    /// Entities that had been deleted since.
    pub deleted: usize,
    /// Entities of the topic whose tenant is gone.
    pub passed_over: usize,
}

/// What the tables have of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    version: u64,
    tenant: TenantId,
}

/// What is to be done about an entity.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Create(ConfigChange),
    Change(ConfigChange),
    Delete(ConfigKey, TenantId),
}

/// Brings the tables up to what the topic has, in one transaction. `read_topic` is called when nobody can publish any more; with
/// `dry_run` nothing is written.
///
/// # Errors
/// [`Error::Conflict`] while a control plane publishes, or when the topic is empty and the tables are not: then it is the topic that was
/// lost.
pub async fn recover<F: Future<Output = Result<TopicState, Error>>>(
    pool: &Pool,
    read_topic: impl FnOnce() -> F,
    dry_run: bool,
) -> Result<Recovered, Error> {
    let publisher = pool.dedicated().await?;
    if !outbox::try_become_publisher(&publisher).await? {
        return Err(Error::Conflict("a control plane is running: stop it first".to_owned()));
    }
    let topic = read_topic().await?;
    let mut client = pool.get().await?;
    client
        .batch_execute(&format!(
            "-- recover: limits\nSET statement_timeout = {TIMEOUT_MS}; SET transaction_timeout = {TIMEOUT_MS}"
        ))
        .await?;
    let mut write = ConfigurationWrite::begin(&mut client).await?;
    let known = known(&write).await?;
    if topic.is_empty() && !known.is_empty() {
        return Err(Error::Conflict(
            "the config topic is empty: there is nothing to recover from".to_owned(),
        ));
    }
    let pending = pending(&write).await?;
    let (steps, passed_over) = plan(&topic, &known, &pending);
    let mut recovered = Recovered { passed_over, ..Recovered::default() };
    for step in steps {
        let counted = match &step {
            Step::Create(_) => &mut recovered.created,
            Step::Change(_) => &mut recovered.changed,
            Step::Delete(..) => &mut recovered.deleted,
        };
        *counted += 1;
        if !dry_run {
            apply(&mut write, step).await?;
        }
    }
    write.commit().await?;
    // The session's limits were lifted: it does not return to the pool.
    drop(deadpool_postgres::Object::take(client));
    drop(publisher);
    Ok(recovered)
}

async fn known(write: &ConfigurationWrite<'_>) -> Result<HashMap<ConfigKey, Known>, Error> {
    let mut known = HashMap::new();
    let mut after = None;
    loop {
        let page = tenants::list(write.reader(), after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(known) };
        after = Some(last.record.id);
        for TenantRow { record, .. } in page {
            let tenant = record.id;
            known.insert(ConfigKey::Tenant(tenant), Known { version: record.version, tenant });
            of_tenant(write, tenant, &mut known).await?;
        }
    }
}

async fn of_tenant(
    write: &ConfigurationWrite<'_>,
    tenant: TenantId,
    known: &mut HashMap<ConfigKey, Known>,
) -> Result<(), Error> {
    let mut after = None;
    loop {
        let page = api_keys::list(write.reader(), tenant, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.record.id);
        let keys = page.into_iter().map(|row| row.record);
        known.extend(keys.map(|key| (ConfigKey::ApiKey(key.id), Known { version: key.version, tenant })));
    }
    let mut after = None;
    loop {
        let page = subscriptions::list(write.reader(), tenant, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.record.id);
        let all = page.into_iter().map(|row| row.record);
        known
            .extend(all.map(|one| (ConfigKey::Subscription(one.id), Known { version: one.version, tenant })));
    }
}

/// Entities with a change that is still to be published: what the topic lacks of them says nothing.
async fn pending(write: &ConfigurationWrite<'_>) -> Result<Vec<ConfigKey>, Error> {
    let published = outbox::published(write.reader()).await?;
    let rows = outbox::rows_after(write.reader(), published.outbox_id, PENDING).await?;
    Ok(rows.iter().filter_map(|row| row.entity_key.parse().ok()).collect())
}

/// The steps, tenants before what is theirs, and how many entities of the topic have no tenant there.
fn plan(topic: &TopicState, known: &HashMap<ConfigKey, Known>, pending: &[ConfigKey]) -> (Vec<Step>, usize) {
    let mut passed_over = 0;
    let (mut of_tenants, mut of_others) = (Vec::new(), Vec::new());
    for (key, change) in topic {
        let Some((version, tenant)) = version_and_tenant(change) else { continue };
        let step = match known.get(key) {
            Some(known) if known.version >= version => continue,
            Some(_) => Step::Change(change.clone()),
            // Deleted, and not published yet.
            None if pending.contains(key) => continue,
            None => Step::Create(change.clone()),
        };
        match key {
            ConfigKey::Tenant(_) => of_tenants.push(step),
            _ if topic.contains_key(&ConfigKey::Tenant(tenant)) => of_others.push(step),
            _ => passed_over += 1,
        }
    }
    let gone = |key: &ConfigKey| !topic.contains_key(key) && !pending.contains(key);
    for (key, Known { tenant, .. }) in known {
        let with_its_tenant = !matches!(key, ConfigKey::Tenant(_)) && gone(&ConfigKey::Tenant(*tenant));
        // Keys end with their tenant only.
        if gone(key) && !with_its_tenant && !matches!(key, ConfigKey::ApiKey(_)) {
            of_others.push(Step::Delete(*key, *tenant));
        }
    }
    of_tenants.append(&mut of_others);
    (of_tenants, passed_over)
}

fn version_and_tenant(change: &ConfigChange) -> Option<(u64, TenantId)> {
    match change {
        ConfigChange::Tenant(tenant) => Some((tenant.version, tenant.id)),
        ConfigChange::ApiKey(key) => Some((key.version, key.tenant)),
        ConfigChange::Subscription(subscription) => Some((subscription.version, subscription.tenant)),
        ConfigChange::Deleted(_) => None,
    }
}

async fn apply(write: &mut ConfigurationWrite<'_>, step: Step) -> Result<(), Error> {
    match step {
        Step::Create(change) => create(write, change).await,
        Step::Change(change) => change_to(write, change).await,
        Step::Delete(ConfigKey::Tenant(id), _) => tenants::delete(write, id).await,
        Step::Delete(ConfigKey::Subscription(id), tenant) => subscriptions::delete(write, tenant, id).await,
        Step::Delete(ConfigKey::ApiKey(_), _) => Ok(()),
    }
}

/// Names are not on the topic; when an entity was created is in its id.
async fn create(write: &mut ConfigurationWrite<'_>, change: ConfigChange) -> Result<(), Error> {
    match change {
        ConfigChange::Tenant(mut record) => {
            record.version += 1;
            let created_at = created_at(record.id.0);
            tenants::insert(write, &TenantRow { record, created_at }).await
        }
        ConfigChange::ApiKey(mut record) => {
            record.version += 1;
            let (name, environment) = ("recovered".to_owned(), "live".to_owned());
            let created_at = created_at(record.id.0);
            api_keys::insert(write, &ApiKeyRow { record, name, environment, created_at }).await
        }
        ConfigChange::Subscription(mut record) => {
            record.version += 1;
            let created_at = created_at(record.id.0);
            // Since when it is paused is told by its last change.
            let updated_at = record.paused_since.unwrap_or(created_at);
            let row = SubscriptionRow { record: *record, name: None, created_at, updated_at };
            subscriptions::insert(write, &row).await
        }
        ConfigChange::Deleted(_) => Ok(()),
    }
}

async fn change_to(write: &mut ConfigurationWrite<'_>, change: ConfigChange) -> Result<(), Error> {
    match change {
        ConfigChange::Tenant(record) => {
            let row = tenants::get(write.reader(), record.id).await?;
            tenants::update(write, &mut TenantRow { record, ..row }).await
        }
        ConfigChange::ApiKey(record) => {
            let row = api_keys::get(write.reader(), record.tenant, record.id).await?;
            api_keys::update(write, &mut ApiKeyRow { record, ..row }).await
        }
        ConfigChange::Subscription(record) => {
            let row = subscriptions::get(write.reader(), record.tenant, record.id).await?;
            let updated_at = record.paused_since.unwrap_or(row.updated_at);
            subscriptions::update(write, &mut SubscriptionRow { record: *record, ..row }, updated_at).await
        }
        ConfigChange::Deleted(_) => Ok(()),
    }
}

/// Ids are UUIDv7.
fn created_at(id: Uuid) -> UnixMillis {
    let (seconds, nanos) = id.get_timestamp().map_or((0, 0), |timestamp| timestamp.to_unix());
    let millis = i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000);
    UnixMillis(millis.saturating_add(i64::from(nanos / 1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{
        config::{CONFIG_VERSION, Tenant, TenantState},
        ids::SubscriptionId,
    };

    fn id(n: u128) -> TenantId {
        TenantId(Uuid::from_u128(n))
    }

    fn tenant(n: u128, version: u64) -> ConfigChange {
        ConfigChange::Tenant(Tenant {
            v: CONFIG_VERSION,
            version,
            id: id(n),
            name: "Acme".to_owned(),
            state: TenantState::Active,
            events_per_second: None,
            requests_per_second: None,
        })
    }

    #[test]
    fn what_the_topic_has_and_the_tables_do_not_is_written_and_what_it_no_longer_has_deleted() {
        let topic: TopicState =
            [tenant(1, 2), tenant(2, 3), tenant(3, 1)].map(|change| (change.key(), change)).into();
        let known = |n, version| (ConfigKey::Tenant(id(n)), Known { version, tenant: id(n) });
        let of = |n: u128, owner| {
            (
                ConfigKey::Subscription(SubscriptionId(Uuid::from_u128(n))),
                Known { version: 1, tenant: id(owner) },
            )
        };
        // The first is as it was, the second changed, the third is new; the fourth was deleted with all that was its own.
        let tables = [known(1, 2), known(2, 1), known(4, 1), of(40, 4), of(10, 1), of(11, 1)].into();
        let pending = [of(11, 1).0];
        let (mut steps, passed_over) = plan(&topic, &tables, &pending);
        assert_eq!(passed_over, 0);
        steps.sort_by_key(|step| format!("{step:?}"));
        let [Step::Change(changed), Step::Create(created), Step::Delete(first, _), Step::Delete(second, _)] =
            &steps[..]
        else {
            panic!("{steps:?}")
        };
        assert_eq!((changed.key(), created.key()), (ConfigKey::Tenant(id(2)), ConfigKey::Tenant(id(3))));
        assert_eq!([*first, *second], [of(10, 1).0, ConfigKey::Tenant(id(4))]);
        // The same again, when nothing was lost.
        assert_eq!(plan(&topic, &[known(1, 2), known(2, 4), known(3, 2)].into(), &[]), (Vec::new(), 0));
    }

    #[test]
    fn what_belongs_to_a_tenant_that_is_gone_is_passed_over_and_a_deletion_under_way_goes_on() {
        let topic: TopicState = [(ConfigKey::Tenant(id(1)), tenant(1, 2))].into();
        assert_eq!(plan(&topic, &HashMap::new(), &[ConfigKey::Tenant(id(1))]), (Vec::new(), 0));
    }

    #[test]
    fn an_id_tells_when_it_was_made() {
        let id = uuid::uuid!("01938f2e-0000-7000-8000-000000000001");
        assert_eq!(created_at(id), UnixMillis(0x0193_8f2e_0000));
    }
}
