-- Rates of requests beside those of events, and rates of single keys within their tenant's. NULL, which every row has that
-- is there already, is what held before: the installation's default for a tenant, no limit of its own for a key.
ALTER TABLE tenant
    ADD COLUMN requests_per_second integer,
    ADD CONSTRAINT tenant_requests_per_second_positive CHECK (requests_per_second > 0);
COMMENT ON COLUMN tenant.requests_per_second IS 'Sustained rate, requests per second. NULL: the installation''s default.';

ALTER TABLE api_key
    ADD COLUMN events_per_second integer,
    ADD COLUMN requests_per_second integer,
    ADD CONSTRAINT api_key_events_per_second_positive CHECK (events_per_second > 0),
    ADD CONSTRAINT api_key_requests_per_second_positive CHECK (requests_per_second > 0);
COMMENT ON COLUMN api_key.events_per_second IS 'Sustained rate of this key alone, events per second. NULL: no limit of its own.';
COMMENT ON COLUMN api_key.requests_per_second IS 'Sustained rate of this key alone, requests per second. NULL: no limit of its own.';
