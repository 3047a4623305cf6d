-- A drill runs this on the restored copy. It fails if a query fails, or if a boolean in a result is false.
SELECT count(*) > 0 AS has_a_database FROM pg_database WHERE datallowconn;
