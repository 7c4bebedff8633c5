-- Configuration: tenants, API keys and subscriptions, the outbox that carries their changes to the `config` topic,
-- and the marks of dead letters that were asked to be delivered again.
--
-- Why an outbox: a change and its announcement are one transaction, so neither exists without the other, and the
-- services that never connect to the database still see every change, in order.
--
-- Owner: control-plane. Volume: administrative (thousands of rows, changes by people and scripts), so rows are
-- updated and deleted in place. Ids are UUIDv7: their order is the order of creation.

CREATE TABLE tenant (
    id                uuid        NOT NULL,
    name              text        NOT NULL,
    state             text        NOT NULL,
    events_per_second integer,
    version           bigint      NOT NULL,
    created_at        timestamptz NOT NULL,
    CONSTRAINT tenant_pkey PRIMARY KEY (id),
    CONSTRAINT tenant_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT tenant_state_known CHECK (state IN ('active', 'suspended')),
    CONSTRAINT tenant_events_per_second_positive CHECK (events_per_second > 0),
    CONSTRAINT tenant_version_positive CHECK (version > 0)
);
COMMENT ON TABLE tenant IS 'A customer of the installation.';
COMMENT ON COLUMN tenant.events_per_second IS 'Sustained rate, events per second. NULL: the installation''s default.';
COMMENT ON COLUMN tenant.version IS 'Grows by one with each change; consumers of `config` ignore older ones.';

CREATE TABLE api_key (
    id          uuid        NOT NULL,
    tenant_id   uuid        NOT NULL,
    name        text        NOT NULL,
    environment text        NOT NULL,
    secret_hash bytea       NOT NULL,
    state       text        NOT NULL,
    expires_at  timestamptz,
    version     bigint      NOT NULL,
    created_at  timestamptz NOT NULL,
    CONSTRAINT api_key_pkey PRIMARY KEY (id),
    CONSTRAINT api_key_tenant_fkey FOREIGN KEY (tenant_id) REFERENCES tenant (id),
    CONSTRAINT api_key_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT api_key_environment_form CHECK (environment ~ '^[a-z0-9]{1,16}$'),
    CONSTRAINT api_key_secret_hash_is_sha256 CHECK (octet_length(secret_hash) = 32),
    CONSTRAINT api_key_state_known CHECK (state IN ('active', 'revoked')),
    CONSTRAINT api_key_version_positive CHECK (version > 0)
);
-- Lists are pages of one tenant's rows by id.
CREATE INDEX api_key_tenant ON api_key (tenant_id, id);
COMMENT ON TABLE api_key IS 'A key that producers authenticate with. The key itself is nowhere stored.';
COMMENT ON COLUMN api_key.secret_hash IS 'SHA-256 of the key''s secret part, which has full entropy.';
COMMENT ON COLUMN api_key.expires_at IS 'When it stops being accepted. NULL: never.';

CREATE TABLE subscription (
    id          uuid        NOT NULL,
    tenant_id   uuid        NOT NULL,
    name        text,
    url         text        NOT NULL,
    types       jsonb       NOT NULL,
    state       text        NOT NULL,
    active_from timestamptz NOT NULL,
    secrets     jsonb       NOT NULL,
    retry       jsonb       NOT NULL,
    history     text        NOT NULL,
    timeout_ms  integer     NOT NULL,
    headers     jsonb       NOT NULL,
    format      text        NOT NULL,
    version     bigint      NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    CONSTRAINT subscription_pkey PRIMARY KEY (id),
    CONSTRAINT subscription_tenant_fkey FOREIGN KEY (tenant_id) REFERENCES tenant (id),
    CONSTRAINT subscription_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT subscription_url_length CHECK (octet_length(url) BETWEEN 1 AND 2048),
    CONSTRAINT subscription_types_list CHECK (jsonb_typeof(types) = 'array'),
    CONSTRAINT subscription_state_known CHECK (state IN ('active', 'paused', 'disabled')),
    CONSTRAINT subscription_secrets_list CHECK (jsonb_typeof(secrets) = 'array'),
    CONSTRAINT subscription_retry_object CHECK (jsonb_typeof(retry) = 'object'),
    CONSTRAINT subscription_history_known CHECK (history IN ('counters', 'all')),
    CONSTRAINT subscription_timeout_positive CHECK (timeout_ms > 0),
    CONSTRAINT subscription_headers_object CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT subscription_format_known CHECK (format IN ('data', 'cloudevents')),
    CONSTRAINT subscription_version_positive CHECK (version > 0)
);
CREATE INDEX subscription_tenant ON subscription (tenant_id, id);
COMMENT ON TABLE subscription IS 'A tenant''s interest in event types, delivered to one URL.';
COMMENT ON COLUMN subscription.name IS 'For people. NULL: unnamed.';
COMMENT ON COLUMN subscription.types IS 'Array of type patterns; one match is enough.';
COMMENT ON COLUMN subscription.active_from IS 'Events recorded earlier are not delivered.';
COMMENT ON COLUMN subscription.secrets IS
    'Signing secrets, newest first: {sealed, expires_at in Unix milliseconds; absent for the current one}.';
COMMENT ON COLUMN subscription.retry IS 'Retry policy: {delays_seconds, jitter, max_age_seconds}.';
COMMENT ON COLUMN subscription.timeout_ms IS 'Longest attempt, milliseconds.';
COMMENT ON COLUMN subscription.headers IS 'Object of headers added to every delivery.';

-- Append-only. Every transaction that writes here holds the advisory lock CONFIGURATION, so ids have no gaps and
-- become visible in their order. The publisher prunes rows that were published long ago.
CREATE TABLE config_outbox (
    id         bigint      NOT NULL,
    entity_key text        NOT NULL,
    value      bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT config_outbox_pkey PRIMARY KEY (id),
    CONSTRAINT config_outbox_id_positive CHECK (id > 0)
);
COMMENT ON TABLE config_outbox IS 'Records for the `config` topic, in the order of their transactions.';
COMMENT ON COLUMN config_outbox.id IS 'Position, from 1 without gaps.';
COMMENT ON COLUMN config_outbox.entity_key IS 'Kafka key: <kind>/<id>.';
COMMENT ON COLUMN config_outbox.value IS 'Kafka value, JSON. NULL: a tombstone, the entity was deleted.';

CREATE TABLE config_publication (
    singleton    boolean     NOT NULL DEFAULT true,
    outbox_id    bigint      NOT NULL,
    kafka_offset bigint,
    published_at timestamptz,
    CONSTRAINT config_publication_pkey PRIMARY KEY (singleton),
    CONSTRAINT config_publication_one_row CHECK (singleton),
    CONSTRAINT config_publication_outbox_id_not_negative CHECK (outbox_id >= 0)
);
COMMENT ON TABLE config_publication IS 'How far the outbox was published; one row.';
COMMENT ON COLUMN config_publication.outbox_id IS 'Last published row of config_outbox; 0 before the first.';
COMMENT ON COLUMN config_publication.kafka_offset IS 'Its offset in the `config` topic. NULL before the first.';
COMMENT ON COLUMN config_publication.published_at IS 'When it was recorded. NULL before the first.';
INSERT INTO config_publication (outbox_id) VALUES (0);

-- Append-only marks: who asked for which dead letter again. A dead letter itself is never changed.
CREATE TABLE dead_letter_replay (
    id             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    tenant_id      uuid        NOT NULL,
    shard          integer     NOT NULL,
    outcome_offset bigint      NOT NULL,
    replay_id      uuid        NOT NULL,
    requested_at   timestamptz NOT NULL,
    CONSTRAINT dead_letter_replay_pkey PRIMARY KEY (id)
);
-- "Was this dead letter replayed?", asked for each row of a list.
CREATE INDEX dead_letter_replay_letter ON dead_letter_replay (shard, outcome_offset);
COMMENT ON TABLE dead_letter_replay IS 'Requests to deliver a dead letter again, written after its record was acknowledged.';
COMMENT ON COLUMN dead_letter_replay.shard IS 'Partition of `outcomes` of the dead letter''s id <shard>-<offset>.';
COMMENT ON COLUMN dead_letter_replay.outcome_offset IS 'Offset of the dead letter''s id <shard>-<offset>.';
