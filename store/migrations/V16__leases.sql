-- Leases told apart from retries that wait. Schedulers of before write `false` for both, and list and count them together.
ALTER TABLE retry ADD COLUMN lease boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN retry.lease IS
    'A delivery under way: the row fires only if its attempt''s own outcome has not come by then. No command covers it.';
