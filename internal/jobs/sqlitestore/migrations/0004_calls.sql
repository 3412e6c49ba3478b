-- What a job calls, where its plugin offers more than its execute.
ALTER TABLE jobs ADD COLUMN task TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN method TEXT NOT NULL DEFAULT '';

-- Jobs that are not final and may need the results of others: retention asks.
CREATE INDEX jobs_waiting ON jobs (status) WHERE status < 2 AND depends_on IS NOT NULL;
