-- What the dialect of Aurora DSQL needs in the database. Functions that DSQL does not have are named local_rds_*.

CREATE SCHEMA sys;
GRANT USAGE ON SCHEMA sys TO PUBLIC;

CREATE TABLE sys.jobs (
    job_id text PRIMARY KEY,
    status text NOT NULL,
    details text,
    job_type text NOT NULL,
    class_id oid NOT NULL,
    object_id oid,
    object_name text,
    start_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON sys.jobs TO PUBLIC;

-- Users cannot write to sys.jobs.
CREATE FUNCTION sys.local_rds_record(kind text, problem text, object oid) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    INSERT INTO sys.jobs (job_id, status, details, job_type, class_id, object_id, object_name)
    SELECT string_agg(substr('abcdefghijklmnopqrstuvwxyz234567', 1 + floor(random() * 32)::int, 1), ''),
        CASE WHEN problem IS NULL THEN 'completed' ELSE 'failed' END, problem, kind, 'pg_class'::regclass, object,
        (SELECT relnamespace::regnamespace || '.' || quote_ident(relname) FROM pg_class WHERE oid = object)
    FROM generate_series(1, 26)
    RETURNING job_id
$$;

-- Runs the statement of a job at once. The proxy reads the INFO, and sends the tag to the client.
CREATE FUNCTION sys.local_rds_run(statement text, kind text, tag text) RETURNS TABLE (job_id text)
LANGUAGE plpgsql AS $$
DECLARE
    problem text;
BEGIN
    PERFORM set_config('local_rds.object', '', true);
    BEGIN
        EXECUTE statement;
    EXCEPTION
        WHEN unique_violation THEN
            problem := 'found duplicate key(s) while validating index uniqueness';
        WHEN integrity_constraint_violation OR check_violation OR foreign_key_violation THEN
            problem := SQLERRM;
    END;
    job_id := sys.local_rds_record(kind, problem, nullif(current_setting('local_rds.object'), '')::oid);
    RAISE INFO 'LocalRds: %', tag;
    RETURN NEXT;
END
$$;

CREATE PROCEDURE sys.wait_for_job(job_id text, INOUT succeeded boolean DEFAULT NULL)
LANGUAGE plpgsql AS $$
BEGIN
    IF job_id !~ '^[a-z2-7]{26}$' THEN
        RAISE EXCEPTION 'Unable to convert text to UUID' USING ERRCODE = '22P02';
    END IF;
    succeeded := EXISTS (
        SELECT FROM sys.jobs WHERE jobs.job_id = wait_for_job.job_id AND status = 'completed');
END
$$;

-- Counts the rows and bytes that a transaction changes.
CREATE FUNCTION sys.local_rds_limits() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    row_count bigint := 1 + coalesce(nullif(current_setting('local_rds.rows', true), ''), '0')::bigint;
    byte_count bigint := coalesce(nullif(current_setting('local_rds.bytes', true), ''), '0')::bigint;
BEGIN
    IF current_setting('is_superuser') = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        byte_count := byte_count + octet_length(record_send(NEW));
    END IF;
    IF row_count > 3000 THEN
        RAISE EXCEPTION 'transaction row limit exceeded' USING ERRCODE = '54000';
    END IF;
    IF byte_count > 10 * 1024 * 1024 THEN
        RAISE EXCEPTION 'transaction size limit 10mb exceeded' USING ERRCODE = '54000';
    END IF;
    PERFORM set_config('local_rds.rows', row_count::text, true), set_config('local_rds.bytes', byte_count::text, true);
    RETURN NULL;
END
$$;

-- Checks the columns of a new or changed table.
CREATE FUNCTION sys.local_rds_check(tag text, object oid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    type_name text;
BEGIN
    SELECT format_type(atttypid, NULL) INTO type_name
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = object AND attnum > 0 AND NOT attisdropped
        AND coalesce(nullif(typbasetype, 0), atttypid) <> ALL (
            '{bool,bytea,bpchar,varchar,text,int2,int4,int8,float4,float8,numeric,date,time,timetz,timestamp,timestamptz,interval,uuid,json,jsonb}'::regtype[]);
    IF FOUND THEN
        RAISE EXCEPTION 'datatype % not supported', type_name USING ERRCODE = '0A000';
    END IF;
    SELECT format_type(atttypid, NULL) INTO type_name
    FROM pg_attribute WHERE attrelid = object AND attidentity <> '' AND atttypid <> 'int8'::regtype;
    IF FOUND THEN
        RAISE EXCEPTION 'datatype % not supported, identity column type must be bigint', type_name
            USING ERRCODE = '0A000';
    END IF;
    IF tag = 'CREATE TABLE' THEN
        EXECUTE format('CREATE TRIGGER local_rds_limits AFTER INSERT OR UPDATE OR DELETE ON %s '
            'FOR EACH ROW EXECUTE FUNCTION sys.local_rds_limits()', object::regclass);
    END IF;
END
$$;

CREATE FUNCTION sys.local_rds_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    command record;
BEGIN
    FOR command IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        IF command.command_tag = 'CREATE INDEX' THEN
            PERFORM set_config('local_rds.object', command.objid::text, true);
        ELSIF command.object_type = 'table' THEN
            PERFORM sys.local_rds_check(command.command_tag, command.objid);
        -- SERIAL creates a sequence that depends on its column.
        ELSIF command.object_type = 'sequence' AND tg_tag <> 'CREATE SEQUENCE'
            AND EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = command.objid
                AND refclassid = 'pg_class'::regclass AND deptype = 'a') THEN
            RAISE EXCEPTION 'type "serial" does not exist' USING ERRCODE = '42704';
        END IF;
    END LOOP;
END
$$;

CREATE EVENT TRIGGER local_rds_ddl ON ddl_command_end
WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE INDEX') EXECUTE FUNCTION sys.local_rds_ddl();
