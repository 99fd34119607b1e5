-- The functions of Aurora, and of clusters with several Availability Zones, by which a client finds
-- the nodes. LocalRds replaces what is between two @ signs.

-- Who is the writer is in a file that LocalRds writes, because a standby cannot be written to.
CREATE FUNCTION pg_catalog.local_rds_topology(
    OUT node text, OUT is_writer boolean, OUT lag double precision, OUT updated timestamptz)
RETURNS SETOF record LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT field[1], field[2] = 'writer', field[3]::double precision,
        coalesce(to_timestamp(nullif(field[4], '')::double precision), clock_timestamp())
    FROM regexp_split_to_table(
            rtrim(pg_read_file(convert_from(decode('@TOPOLOGY@', 'hex'), 'UTF8')), E'\n'),
            E'\n') AS line,
        string_to_array(line, E'\t') AS field
$$;

CREATE FUNCTION pg_catalog.aurora_db_instance_identifier() RETURNS text
LANGUAGE sql STABLE AS $$ SELECT current_setting('cluster_name') $$;

CREATE FUNCTION pg_catalog.aurora_replica_status(
    OUT server_id text, OUT session_id text, OUT last_update_timestamp timestamptz,
    OUT replica_lag_in_msec double precision, OUT cpu double precision)
RETURNS SETOF record LANGUAGE sql VOLATILE AS $$
    SELECT node, CASE WHEN is_writer THEN 'MASTER_SESSION_ID' ELSE md5(node)::uuid::text END,
        updated, CASE WHEN NOT is_writer THEN lag END, 1::double precision
    FROM pg_catalog.local_rds_topology()
$$;

CREATE FUNCTION pg_catalog.aurora_global_db_instance_status(
    OUT server_id text, OUT session_id text, OUT aws_region text, OUT durable_lsn bigint,
    OUT highest_lsn_rcvd bigint, OUT feedback_epoch bigint, OUT feedback_xmin bigint,
    OUT oldest_read_view_lsn bigint, OUT visibility_lag_in_msec double precision)
RETURNS SETOF record LANGUAGE sql VOLATILE AS $$
    SELECT server_id, session_id, '@REGION@'::text, NULL::bigint, NULL::bigint, NULL::bigint,
        NULL::bigint, NULL::bigint, replica_lag_in_msec
    FROM pg_catalog.aurora_replica_status()
$$;

CREATE SCHEMA rds_tools;
GRANT USAGE ON SCHEMA rds_tools TO PUBLIC;

CREATE FUNCTION rds_tools.show_topology(driver text DEFAULT '')
RETURNS TABLE (id text, endpoint text, port integer) LANGUAGE sql VOLATILE AS $$
    SELECT node, node || '.@SUFFIX@', current_setting('port')::integer
    FROM pg_catalog.local_rds_topology()
$$;

CREATE FUNCTION rds_tools.dbi_resource_id(OUT dbi_resource_id text)
LANGUAGE sql STABLE AS $$ SELECT current_setting('cluster_name') $$;

CREATE FUNCTION rds_tools.multi_az_db_cluster_source_dbi_resource_id(
    OUT multi_az_db_cluster_source_dbi_resource_id text)
LANGUAGE sql VOLATILE AS $$
    SELECT node FROM pg_catalog.local_rds_topology() WHERE is_writer
$$;
