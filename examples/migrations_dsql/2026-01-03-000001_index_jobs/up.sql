CREATE INDEX ASYNC jobs_to_do ON jobs (run_at, id);
