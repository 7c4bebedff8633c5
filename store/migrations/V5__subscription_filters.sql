-- Conditions on events besides their type. NULL, which every row has that is there already, is what held before: none.
ALTER TABLE subscription
    ADD COLUMN filter text,
    ADD CONSTRAINT subscription_filter_length CHECK (octet_length(filter) BETWEEN 1 AND 1024);
COMMENT ON COLUMN subscription.filter IS 'Condition in CEL that an event must pass, see schemas/src/filter.rs. NULL: none.';
