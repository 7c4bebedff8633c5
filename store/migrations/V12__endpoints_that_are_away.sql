-- What a subscription asks for when its endpoint does not answer. NULL, which every row has that is there already, is what held
-- before: deliveries wait, the installation says when, and nothing limits requests.
ALTER TABLE subscription
    ADD COLUMN fallback_url text,
    ADD COLUMN breaker jsonb,
    ADD COLUMN requests_per_second integer,
    ADD CONSTRAINT subscription_fallback_differs CHECK (fallback_url <> url),
    ADD CONSTRAINT subscription_breaker_object CHECK (jsonb_typeof(breaker) = 'object'),
    ADD CONSTRAINT subscription_rate_positive CHECK (requests_per_second > 0);
COMMENT ON COLUMN subscription.fallback_url IS 'Where deliveries go while url gets none because it does not answer.';
COMMENT ON COLUMN subscription.breaker IS
    'When an endpoint gets no requests for a while, see schemas/src/breaker_policy.rs. NULL: as the installation says.';
COMMENT ON COLUMN subscription.requests_per_second IS 'Requests to the endpoint by all dispatchers together. NULL: no limit.';

ALTER TABLE delivery ADD COLUMN via text;
COMMENT ON COLUMN delivery.via IS 'fallback: the attempt was made at fallback_url. NULL: at url, or none was made.';
