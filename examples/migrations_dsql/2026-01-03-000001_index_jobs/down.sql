DROP INDEX jobs_to_do;
