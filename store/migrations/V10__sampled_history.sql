-- Subscriptions of whose successes history keeps a sample. NULL, which every row has that is there already: none is taken.
ALTER TABLE subscription
    ADD COLUMN history_sample integer,
    DROP CONSTRAINT subscription_history_known,
    ADD CONSTRAINT subscription_history_known CHECK (history IN ('counters', 'all', 'sampled')),
    ADD CONSTRAINT subscription_history_sample_range CHECK (history_sample BETWEEN 2 AND 1000000),
    ADD CONSTRAINT subscription_history_sample_of_sampled CHECK (history <> 'sampled' OR history_sample IS NOT NULL);
COMMENT ON COLUMN subscription.history_sample IS 'If history is sampled, it keeps one success in so many.';
