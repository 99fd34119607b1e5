-- A job is deleted when it is done. A dead job stays, so that people can inspect it.
CREATE TABLE jobs (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    run_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_error TEXT,
    died_at TIMESTAMPTZ
);

CREATE INDEX jobs_to_do ON jobs (run_at, id) WHERE died_at IS NULL;

-- The effects of the jobs. Transactions, not constraints, ensure that a job takes effect once.
CREATE TABLE ledger (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id BIGINT NOT NULL,
    account INTEGER NOT NULL,
    amount INTEGER NOT NULL CHECK (amount <> 0)
);

-- The commit of an insert wakes the workers.
CREATE FUNCTION notify_jobs() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY jobs;
    RETURN NULL;
END
$$;

CREATE TRIGGER notify_jobs AFTER INSERT ON jobs FOR EACH STATEMENT EXECUTE FUNCTION notify_jobs();
