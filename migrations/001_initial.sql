-- What Holdfast keeps in PostgreSQL: tasks, profiles, and what became of operations.
--
-- Every field of a task or a profile is a last-writer-wins register: beside its value stands the stamp of the write
-- that set it, and a write sets a field only where its own stamp is greater. A stamp is a positive bigint of, from
-- the top, 41 bits of milliseconds since 2020, 8 bits of counter, and 14 bits of writer; 0 means that nobody has
-- written the field.
--
-- Columns have defaults rather than rules about their content: a partial write is an INSERT ... ON CONFLICT DO
-- UPDATE whose proposed row holds placeholders, and PostgreSQL checks constraints on that row before it sees the
-- conflict. What a field may hold is checked once, where it enters the program.

-- When a write was made. The first tick of a stamp is 2020-01-01T00:00:00Z, 1577836800000 ms after the Unix epoch.
CREATE FUNCTION holdfast_time(stamp bigint) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_timestamp(((stamp >> 22) + 1577836800000) / 1000.0::double precision);

-- user_id is no foreign key: an operation on a task is valid by itself, whether or not the user's profile has been
-- seen yet, and a key would take a share lock on the one row of a busy user for each of that user's tasks.
--
-- A deleted task stays as a tombstone (deleted_stamp > 0) with its body cleared, so that a late write can't bring
-- it back. The three times are computed from the stamps, so they are the same in whatever order writes arrive.
CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    title text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT 'todo',
    priority smallint NOT NULL DEFAULT 3,
    due_at timestamptz,
    tags text[] NOT NULL DEFAULT '{}',
    created_stamp bigint NOT NULL DEFAULT 0,
    deleted_stamp bigint NOT NULL DEFAULT 0,
    title_stamp bigint NOT NULL DEFAULT 0,
    description_stamp bigint NOT NULL DEFAULT 0,
    status_stamp bigint NOT NULL DEFAULT 0,
    priority_stamp bigint NOT NULL DEFAULT 0,
    due_at_stamp bigint NOT NULL DEFAULT 0,
    tags_stamp bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (holdfast_time(created_stamp)) STORED,
    updated_at timestamptz NOT NULL GENERATED ALWAYS AS (holdfast_time(GREATEST(
        created_stamp, deleted_stamp, title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp,
        tags_stamp))) STORED,
    completed_at timestamptz GENERATED ALWAYS AS (
        CASE WHEN status = 'done' THEN holdfast_time(status_stamp) END) STORED
);

-- Profiles. A field that was only filled from a token's claims has stamp 0, so that any real write wins.
CREATE TABLE users (
    id text PRIMARY KEY,
    email text,
    display_name text NOT NULL DEFAULT '',
    bio text NOT NULL DEFAULT '',
    avatar_url text,
    locale text,
    timezone text,
    preferences jsonb NOT NULL DEFAULT '{}',
    created_stamp bigint NOT NULL DEFAULT 0,
    deleted_stamp bigint NOT NULL DEFAULT 0,
    email_stamp bigint NOT NULL DEFAULT 0,
    display_name_stamp bigint NOT NULL DEFAULT 0,
    bio_stamp bigint NOT NULL DEFAULT 0,
    avatar_url_stamp bigint NOT NULL DEFAULT 0,
    locale_stamp bigint NOT NULL DEFAULT 0,
    timezone_stamp bigint NOT NULL DEFAULT 0,
    preferences_stamp bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (holdfast_time(created_stamp)) STORED,
    updated_at timestamptz NOT NULL GENERATED ALWAYS AS (holdfast_time(GREATEST(
        created_stamp, deleted_stamp, email_stamp, display_name_stamp, bio_stamp, avatar_url_stamp, locale_stamp,
        timezone_stamp, preferences_stamp))) STORED
);

-- What became of each operation that was buffered, had an idempotency key, or had a precondition: written in the
-- transaction that applied it, and looked up before an operation is judged, so a repeat gets the first answer.
CREATE TABLE applied_operations (
    user_id text NOT NULL,
    id uuid NOT NULL,
    idempotency_key text,
    fingerprint bytea,
    entity text NOT NULL,
    entity_id text NOT NULL,
    operation text NOT NULL,
    state text NOT NULL,
    reason text,
    priority smallint NOT NULL,
    retries integer NOT NULL DEFAULT 0,
    stamp bigint NOT NULL,
    accepted_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, id)
);

-- One row: which database this is. A buffer file remembers it, so that its items never go into another one.
CREATE TABLE holdfast_database (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO holdfast_database DEFAULT VALUES;

-- Rows that health probes write, to know that writing works: each process takes one of a fixed number of slots, so
-- the table never grows and processes seldom wait for each other. Half-empty pages keep the updates within a page.
CREATE TABLE holdfast_probes (
    slot smallint PRIMARY KEY,
    probed_at timestamptz NOT NULL
) WITH (fillfactor = 50);
