-- The catalogues, which are attached tables, their versions, and the outbox of changes.
--
-- Correctness depends on triggers and not on the service, so that it holds for every writer: the service, psql, COPY, logical
-- replication. The functions are SECURITY DEFINER, so that rights on the table alone suffice to write. Their search_path
-- is pinned and every name is qualified, so that the writer's own search_path has no effect. docs/sql.md is the contract.

-- The migrator creates the schema itself, because its own table is in it.

-- One sequence for all products. CACHE 1: with a cache of numbers per session a later commit could get a lower version. Version 1
-- is that of every row that was not written since its table was attached, so the sequence starts above it.
CREATE SEQUENCE hotshelf.product_version AS bigint MINVALUE 2 CACHE 1;

-- A catalogue is an attached table, with its identity and epoch. The identity consists of the random id, PostgreSQL's system
-- identifier and the oid of the database, so that a copy (dump, template) is another catalogue, and a promoted physical replica
-- the same one. What follows the identity is the mapping, with hotshelf.mapped_column.
CREATE TABLE hotshelf.catalogue (
    number         integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text        NOT NULL UNIQUE,
    -- As regclass, so that it follows the table when that is renamed, and is dumped by name.
    relation       regclass    NOT NULL UNIQUE,
    id             uuid        NOT NULL DEFAULT gen_random_uuid(),
    -- The WAL timeline of the epoch. A point-in-time recovery or a promotion starts another one, and may have lost commits.
    timeline       bigint      NOT NULL
        DEFAULT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint,
    -- Replaced when PostgreSQL may have gone back: then versions are assigned again, to other contents. Replaced also when the
    -- mapping changes: then entries with the same version have other contents.
    epoch          uuid        NOT NULL DEFAULT gen_random_uuid(),
    -- Replaced when Redis may contain old entries that cannot be identified, because more changes are pending than are kept.
    redis_epoch    uuid        NOT NULL DEFAULT gen_random_uuid(),
    epoch_time     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A price of an integer type counts units of 10 to the power of minus this. NULL: a numeric price.
    price_decimals smallint,
    -- The currency of all prices, unless a column is mapped to it.
    currency       text,
    -- Whether each column that is not mapped otherwise is an attribute.
    all_attributes boolean     NOT NULL
);

-- The columns of a catalogue. A column that was renamed is found by its number, as long as its table is the same one.
CREATE TABLE hotshelf.mapped_column (
    catalogue    integer NOT NULL REFERENCES hotshelf.catalogue ON DELETE CASCADE,
    role         text    NOT NULL CHECK (role IN
        ('id', 'name', 'price', 'currency', 'description', 'create_time', 'update_time', 'attribute')),
    name         text    NOT NULL,
    relation_oid oid     NOT NULL,
    attnum       smallint NOT NULL,
    PRIMARY KEY (catalogue, name)
);
CREATE UNIQUE INDEX mapped_role ON hotshelf.mapped_column (catalogue, role) WHERE role <> 'attribute';

-- The outbox: the changes of a transaction, written in that transaction. A statement packs up to 1,000 changes into one row, so
-- that a bulk job writes, and each instance reads, a thousandth of the rows.
--
-- xid is the top-level transaction: together with the snapshot of the last poll it determines exactly which rows are new
-- (src/postgres/changes.rs). A deletion has the version of the deleted row: at equal versions "deleted" is the newer state, and a
-- later insert gets a higher version. product_ids is NULL for TRUNCATE: every product below versions[1] is deleted.
CREATE TABLE hotshelf.outbox (
    catalogue   integer  NOT NULL,
    xid         xid8     NOT NULL DEFAULT pg_current_xact_id(),
    seq         bigint   GENERATED ALWAYS AS IDENTITY,
    product_ids bigint[],
    versions    bigint[] NOT NULL,
    deleted     boolean  NOT NULL,
    -- A poll compares it with the same clock, and so knows how long ago a change was made.
    write_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (catalogue, xid, seq)
) WITH (
    -- A queue: rows are deleted after about a minute. Without these settings dead rows and stale statistics of a burst stay long.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- The last versions of deleted products, from which a load that finds no row makes a versioned tombstone. Kept for as long as a
-- cache may contain an older copy, then pruned.
CREATE TABLE hotshelf.deleted (
    catalogue   integer     NOT NULL,
    product_id  bigint      NOT NULL,
    version     bigint      NOT NULL,
    delete_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (catalogue, product_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX deleted_by_time ON hotshelf.deleted (catalogue, delete_time);

-- The same for TRUNCATE. One row each, because at REPEATABLE READ concurrent UPDATEs of one row would fail.
CREATE TABLE hotshelf.truncations (
    catalogue   integer     NOT NULL,
    version     bigint      NOT NULL,
    delete_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (catalogue, version)
);

-- How far the outbox is applied to Redis and pruned, and the lease of the instance that does both.
CREATE TABLE hotshelf.feed (
    catalogue   integer     PRIMARY KEY,
    -- Rows that are visible in this snapshot may have been deleted.
    pruned      pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    -- Redis reflects every row that is visible in this snapshot.
    relayed     pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    holder      uuid,
    held_until  timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Snapshots with their times: a row that is visible in a mark was visible at the mark's time. The retention of outbox rows
-- counts from the time at which they became visible, which for a long transaction is long after they were written.
CREATE TABLE hotshelf.marks (
    catalogue   integer     NOT NULL,
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token       uuid        NOT NULL DEFAULT gen_random_uuid(),
    snapshot    pg_snapshot NOT NULL,
    -- Whether Redis reflected every row that is visible in the snapshot.
    relayed     boolean     NOT NULL,
    mark_time   timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
CREATE INDEX marks_of_catalogue ON hotshelf.marks (catalogue, id);

-- Versions are assigned while the row is locked, so for each product they grow in the order of commits. An exception is an
-- insert, which locks its key after this trigger: see the function inserted_N, below.
CREATE FUNCTION hotshelf.assign_version() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.hotshelf_version := nextval('hotshelf.product_version');
    RETURN NEW;
END $$;

-- Statement triggers with transition tables: one trigger call per statement, also for a million rows. No NOTIFY, because it
-- takes a database-wide lock at commit.
--
-- Two kinds of writes fire no statement trigger of this table: those of the apply worker of logical replication, and those that
-- name a partition. So under session_replication_role = replica, and for rows of partitions, row_N records instead.
CREATE FUNCTION hotshelf.records_rows(written oid) RETURNS boolean LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('session_replication_role') = 'replica'
        OR EXISTS (SELECT FROM pg_class WHERE oid = written AND (relkind = 'p' OR relispartition))
$$;

CREATE FUNCTION hotshelf.id_column(of_catalogue integer) RETURNS text LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT name FROM hotshelf.mapped_column WHERE catalogue = of_catalogue AND role = 'id'
$$;

-- The trigger functions of catalogue N, which has the id column {id}. A function of its own for each catalogue, so that PL/pgSQL
-- keeps the plans of static statements. They do not contain the name of the table, which may be
-- renamed. The name of the id column is replaced last, so that nothing in it is replaced.
CREATE FUNCTION hotshelf.create_functions(number integer) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $create$
BEGIN
    EXECUTE replace(replace($template$
CREATE OR REPLACE FUNCTION hotshelf.inserted_{n}() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF hotshelf.records_rows(TG_RELID) THEN RETURN NULL; END IF;
    INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted)
        SELECT {n}, array_agg(id), array_agg(version), false
        FROM (SELECT {id}::bigint AS id, hotshelf_version AS version, (row_number() OVER () - 1) / 1000 AS pack
              FROM written) AS packed GROUP BY pack;
    -- An insert gets its version before it waits for its key. If during that wait other transactions changed and deleted a
    -- product with the same id, the version is too low, and the row gets a new one. At REPEATABLE READ such a deletion is not
    -- visible here, so every inserted row gets a new version.
    IF current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        IF EXISTS (SELECT FROM written JOIN hotshelf.deleted AS gone
                   ON gone.catalogue = {n} AND gone.product_id = written.{id} AND gone.version >= written.hotshelf_version) THEN
            EXECUTE format('UPDATE %s AS product SET hotshelf_version = product.hotshelf_version '
                'FROM written JOIN hotshelf.deleted AS gone ON gone.catalogue = {n} AND gone.product_id = written.%I '
                'WHERE product.%2$I = written.%2$I AND gone.version >= written.hotshelf_version',
                TG_RELID::regclass, hotshelf.id_column({n}));
        END IF;
    ELSE
        EXECUTE format('UPDATE %s AS product SET hotshelf_version = product.hotshelf_version '
            'FROM written WHERE product.%I = written.%2$I', TG_RELID::regclass, hotshelf.id_column({n}));
    END IF;
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION hotshelf.updated_{n}() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF hotshelf.records_rows(TG_RELID) THEN RETURN NULL; END IF;
    INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted)
        SELECT {n}, array_agg(id), array_agg(version), false
        FROM (SELECT {id}::bigint AS id, hotshelf_version AS version, (row_number() OVER () - 1) / 1000 AS pack
              FROM written) AS packed GROUP BY pack;
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION hotshelf.deleted_{n}() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF hotshelf.records_rows(TG_RELID) THEN RETURN NULL; END IF;
    INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted)
        SELECT {n}, array_agg(id), array_agg(version), true
        FROM (SELECT {id}::bigint AS id, coalesce(hotshelf_version, 1) AS version, (row_number() OVER () - 1) / 1000 AS pack
              FROM gone) AS packed GROUP BY pack;
    INSERT INTO hotshelf.deleted (catalogue, product_id, version)
        SELECT {n}, {id}, coalesce(hotshelf_version, 1) FROM gone
        ON CONFLICT (catalogue, product_id) DO UPDATE SET version = excluded.version, delete_time = excluded.delete_time;
    RETURN NULL;
END $function$;

-- Records each row that no statement trigger records, and for a product whose id changes, the deletion of the old id.
CREATE OR REPLACE FUNCTION hotshelf.row_{n}() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND NEW.{id} <> OLD.{id}) THEN
        INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted)
            VALUES ({n}, ARRAY[OLD.{id}::bigint], ARRAY[coalesce(OLD.hotshelf_version, 1)], true);
        INSERT INTO hotshelf.deleted (catalogue, product_id, version)
            VALUES ({n}, OLD.{id}, coalesce(OLD.hotshelf_version, 1))
            ON CONFLICT (catalogue, product_id) DO UPDATE SET version = excluded.version, delete_time = excluded.delete_time;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        IF hotshelf.records_rows(TG_RELID) THEN
            INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted)
                VALUES ({n}, ARRAY[NEW.{id}::bigint], ARRAY[NEW.hotshelf_version], false);
        END IF;
        IF (TG_OP = 'INSERT' OR NEW.{id} <> OLD.{id})
            -- As in inserted_{n}.
            AND (current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')
                 OR EXISTS (SELECT FROM hotshelf.deleted AS gone WHERE gone.catalogue = {n}
                            AND gone.product_id = NEW.{id} AND gone.version >= NEW.hotshelf_version)) THEN
            EXECUTE format('UPDATE %s SET hotshelf_version = hotshelf_version WHERE %I = $1',
                TG_RELID::regclass, hotshelf.id_column({n})) USING NEW.{id};
        END IF;
    END IF;
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION hotshelf.truncated_{n}() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    below bigint := nextval('hotshelf.product_version');
BEGIN
    INSERT INTO hotshelf.truncations (catalogue, version) VALUES ({n}, below);
    INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted) VALUES ({n}, NULL, ARRAY[below], true);
    RETURN NULL;
END $function$;
$template$, '{n}', number::text), '{id}', quote_ident(hotshelf.id_column(number)));
END $create$;

CREATE FUNCTION hotshelf.trigger_names() RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY['hotshelf_version', 'hotshelf_inserted', 'hotshelf_updated', 'hotshelf_deleted', 'hotshelf_row_moved',
                 'hotshelf_row_inserted', 'hotshelf_row_deleted', 'hotshelf_truncated']
$$;

-- The triggers of a catalogue (NULL: of all) that are missing or not ENABLE ALWAYS, as 'table: trigger'. A new partition gets the
-- row triggers of its parent.
CREATE FUNCTION hotshelf.broken_triggers(of_catalogue integer DEFAULT NULL) RETURNS SETOF text LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT watched.relid::regclass || ': ' || expected.name
    FROM hotshelf.catalogue AS attached,
        LATERAL (SELECT attached.relation::oid AS relid
                 UNION SELECT relid FROM pg_partition_tree(attached.relation)) AS watched,
        unnest(hotshelf.trigger_names()) AS expected (name)
    WHERE (of_catalogue IS NULL OR attached.number = of_catalogue)
        AND (watched.relid = attached.relation OR expected.name LIKE 'hotshelf\_row\_%' OR expected.name = 'hotshelf_version')
        AND NOT EXISTS (SELECT FROM pg_trigger
                        WHERE tgrelid = watched.relid AND tgname = expected.name AND tgenabled = 'A')
    ORDER BY 1
$$;

CREATE FUNCTION hotshelf.drop_triggers(relation regclass) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY hotshelf.trigger_names() LOOP
        IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = relation AND tgname = name) THEN
            EXECUTE format('DROP TRIGGER %I ON %s', name, relation);
        END IF;
    END LOOP;
END $$;

-- (Re)creates the triggers of a catalogue (NULL: of all), for instance after a tool disabled them. ENABLE ALWAYS, so that they
-- also fire under session_replication_role = replica.
CREATE FUNCTION hotshelf.install_triggers(of_catalogue integer DEFAULT NULL) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    attached hotshelf.catalogue;
    name text;
BEGIN
    FOR attached IN SELECT * FROM hotshelf.catalogue AS c WHERE of_catalogue IS NULL OR c.number = of_catalogue LOOP
        PERFORM hotshelf.create_functions(attached.number);
        PERFORM hotshelf.drop_triggers(attached.relation);
        -- The conditions of the row triggers are true for what fires no statement trigger of this table.
        EXECUTE format($template$
            CREATE TRIGGER hotshelf_version BEFORE INSERT OR UPDATE ON %1$s
                FOR EACH ROW EXECUTE FUNCTION hotshelf.assign_version();
            CREATE TRIGGER hotshelf_inserted AFTER INSERT ON %1$s
                REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION hotshelf.inserted_%2$s();
            CREATE TRIGGER hotshelf_updated AFTER UPDATE ON %1$s
                REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION hotshelf.updated_%2$s();
            CREATE TRIGGER hotshelf_deleted AFTER DELETE ON %1$s
                REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION hotshelf.deleted_%2$s();
            CREATE TRIGGER hotshelf_row_moved AFTER UPDATE ON %1$s
                FOR EACH ROW WHEN (OLD.%3$I <> NEW.%3$I OR NEW.tableoid <> %4$L::regclass
                                   OR current_setting('session_replication_role') = 'replica')
                EXECUTE FUNCTION hotshelf.row_%2$s();
            CREATE TRIGGER hotshelf_row_inserted AFTER INSERT ON %1$s
                FOR EACH ROW WHEN (NEW.tableoid <> %4$L::regclass
                                   OR current_setting('session_replication_role') = 'replica')
                EXECUTE FUNCTION hotshelf.row_%2$s();
            CREATE TRIGGER hotshelf_row_deleted AFTER DELETE ON %1$s
                FOR EACH ROW WHEN (OLD.tableoid <> %4$L::regclass
                                   OR current_setting('session_replication_role') = 'replica')
                EXECUTE FUNCTION hotshelf.row_%2$s();
            CREATE TRIGGER hotshelf_truncated AFTER TRUNCATE ON %1$s
                FOR EACH STATEMENT EXECUTE FUNCTION hotshelf.truncated_%2$s();
            $template$, attached.relation, attached.number, hotshelf.id_column(attached.number), attached.relation::text);
        FOREACH name IN ARRAY hotshelf.trigger_names() LOOP
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', attached.relation, name);
        END LOOP;
    END LOOP;
END $$;

-- Stores a mapping: {"columns": {role: column}, "attributes": [column], "all_attributes": boolean, "price_decimals": number or
-- null, "currency": code or null}. A column that does not exist is an error, because attnum is not null.
CREATE FUNCTION hotshelf.map_columns(of_catalogue integer, mapping jsonb) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    attached hotshelf.catalogue;
BEGIN
    UPDATE hotshelf.catalogue SET price_decimals = (mapping ->> 'price_decimals')::smallint,
            currency = mapping ->> 'currency', all_attributes = (mapping ->> 'all_attributes')::boolean
        WHERE number = of_catalogue RETURNING * INTO STRICT attached;
    DELETE FROM hotshelf.mapped_column WHERE catalogue = of_catalogue;
    INSERT INTO hotshelf.mapped_column (catalogue, role, name, relation_oid, attnum)
        SELECT of_catalogue, wanted.role, wanted.name, attached.relation, attnum
        FROM (SELECT * FROM jsonb_each_text(mapping -> 'columns')
              UNION ALL SELECT 'attribute', jsonb_array_elements_text(mapping -> 'attributes')) AS wanted (role, name)
            LEFT JOIN pg_attribute ON attrelid = attached.relation AND attname = wanted.name AND attnum > 0 AND NOT attisdropped;
END $$;

-- Attaches a table that has the column hotshelf_version. Returns the number of the catalogue.
CREATE FUNCTION hotshelf.attach(attached regclass, catalogue_name text, mapping jsonb) RETURNS integer LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made integer;
BEGIN
    INSERT INTO hotshelf.catalogue (name, relation, all_attributes) VALUES (catalogue_name, attached, false)
        RETURNING number INTO made;
    INSERT INTO hotshelf.feed (catalogue) VALUES (made);
    PERFORM hotshelf.map_columns(made, mapping);
    PERFORM hotshelf.install_triggers(made);
    RETURN made;
END $$;

-- Replaces the mapping of an attached table. The epoch is raised, because entries of the same version now have other contents.
CREATE FUNCTION hotshelf.attach_again(attached regclass, mapping jsonb) RETURNS integer LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known integer;
BEGIN
    UPDATE hotshelf.catalogue
        SET epoch = gen_random_uuid(), redis_epoch = gen_random_uuid(), epoch_time = clock_timestamp()
        WHERE relation = attached RETURNING number INTO STRICT known;
    -- Nothing is left to relay: all caches start empty.
    UPDATE hotshelf.feed SET pruned = pg_current_snapshot(), relayed = pg_current_snapshot(), holder = NULL,
        held_until = '-infinity' WHERE catalogue = known;
    DELETE FROM hotshelf.marks WHERE catalogue = known;
    PERFORM hotshelf.map_columns(known, mapping);
    PERFORM hotshelf.create_functions(known);
    IF EXISTS (SELECT FROM hotshelf.broken_triggers(known)) THEN
        PERFORM hotshelf.install_triggers(known);
    END IF;
    RETURN known;
END $$;

-- Attaches another table in place of an attached one, such as a partitioned one. It has the same columns.
CREATE FUNCTION hotshelf.replace_table(attached regclass, by_table regclass) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known integer;
BEGIN
    UPDATE hotshelf.catalogue SET relation = by_table WHERE relation = attached RETURNING number INTO STRICT known;
    UPDATE hotshelf.mapped_column SET relation_oid = by_table, attnum = (
            SELECT column_of.attnum FROM pg_attribute AS column_of
            WHERE attrelid = by_table AND attname = name AND NOT attisdropped)
        WHERE catalogue = known;
    PERFORM hotshelf.drop_triggers(attached);
    PERFORM hotshelf.install_triggers(known);
END $$;

-- Removes a catalogue, and the triggers of its table. The column hotshelf_version is left.
CREATE FUNCTION hotshelf.detach(attached regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known integer;
    kind text;
BEGIN
    DELETE FROM hotshelf.catalogue WHERE relation = attached RETURNING number INTO STRICT known;
    PERFORM hotshelf.drop_triggers(attached);
    FOREACH kind IN ARRAY ARRAY['inserted', 'updated', 'deleted', 'row', 'truncated'] LOOP
        EXECUTE format('DROP FUNCTION hotshelf.%I()', kind || '_' || known);
    END LOOP;
    DELETE FROM hotshelf.outbox WHERE catalogue = known;
    DELETE FROM hotshelf.deleted WHERE catalogue = known;
    DELETE FROM hotshelf.truncations WHERE catalogue = known;
    DELETE FROM hotshelf.feed WHERE catalogue = known;
    DELETE FROM hotshelf.marks WHERE catalogue = known;
END $$;
