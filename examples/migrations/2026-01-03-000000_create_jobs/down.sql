DROP TABLE jobs;
DROP FUNCTION notify_jobs;
DROP TABLE ledger;
