-- The store of flowdsl. Bodies are bytes written by our codec, never jsonb: it drops -0.0, NaN, NUL and the order of keys.

create table flowdsl.workers (
  id uuid primary key,                                  -- new at each process start
  beat timestamptz not null default clock_timestamp(),  -- changed by plain UPDATE only: it passes the committers' KEY SHARE
  lease interval not null,
  gone boolean not null default false,                  -- set only after SELECT … FOR UPDATE, which waits for them
  host text not null,
  pid integer not null,
  started timestamptz not null default clock_timestamp()
);

create table flowdsl.executions (
  id uuid primary key,
  tenant text not null,
  workflow text not null,
  version integer not null,
  scope text not null default '',                       -- of the key: '' for a start from outside, else the parent's key or id
  key text,
  current boolean not null default true,                -- of all that had this key, the newest
  status text not null default 'running'
    check (status in ('running', 'suspended', 'blocked', 'succeeded', 'failed', 'cancelled')),
  owner uuid,
  epoch integer not null default 0,
  wake timestamptz,                                     -- when it may be claimed; the earliest of its dues
  mail integer not null default 0,                      -- mails ever accepted: a suspension names the count that it has seen
  parent uuid,
  parent_step text not null default '',
  detached boolean not null default false,
  deaths integer not null default 0,                    -- workers that died with it since its last entry
  request bytea not null,
  exit bytea,
  cause text,
  started timestamptz not null default clock_timestamp(),
  ended timestamptz
) with (fillfactor = 80);

create index executions_due on flowdsl.executions (wake) where owner is null and wake is not null;
create index executions_owner on flowdsl.executions (owner) where owner is not null;
create index executions_parent on flowdsl.executions (parent) where parent is not null;
create unique index executions_key on flowdsl.executions (tenant, workflow, scope, key) where current and key is not null;
create index executions_started on flowdsl.executions (started);

-- Insert only, gapless per execution. Who gets the first position of a turn gets the rest.
create table flowdsl.journal (
  execution uuid not null,
  position integer not null,
  epoch integer not null,
  kind smallint not null,
  at timestamptz not null,
  step text not null,
  fingerprint text not null,
  site text not null,
  body bytea not null,
  live int4multirange,                                  -- of a checkpoint: the positions below it that are still needed
  primary key (execution, position)
);
create index journal_live on flowdsl.journal (execution, position) where live is not null;

create table flowdsl.mailbox (
  execution uuid not null,
  seq integer not null,
  kind text not null,
  name text not null,
  key text,
  body bytea not null,
  primary key (execution, seq)
);

create table flowdsl.deliveries (                       -- outlives its mail, so that a late duplicate is still known
  scope text not null,
  delivery text not null,
  at timestamptz not null default clock_timestamp(),
  primary key (scope, delivery)
);

create table flowdsl.aliases (                          -- the row that sender and registrant of a correlation key both lock
  tenant text not null,
  name text not null,
  key text not null,
  execution uuid,
  primary key (tenant, name, key)
);

create table flowdsl.unmatched (
  tenant text not null,
  name text not null,
  key text not null,
  delivery text not null,
  body bytea not null,
  at timestamptz not null default clock_timestamp(),
  primary key (tenant, name, key, delivery)
);

create table flowdsl.notes (                            -- progress for people who watch: no order, no promise
  execution uuid primary key,
  note text not null,
  done bigint,
  total bigint,
  at timestamptz not null default clock_timestamp()
);

create table flowdsl.audit (                            -- numbered and chained by one sealer per tenant
  id bigint generated always as identity primary key,
  tenant text not null,
  execution uuid,
  event text not null,
  facts bytea not null,
  at timestamptz not null default clock_timestamp(),
  seq bigint,
  hash bytea
);

create table flowdsl.rate_limits (                      -- one-row GCRA, in Postgres's time
  name text primary key,
  due timestamptz not null
);

create table flowdsl.schedules (
  id text primary key,
  tenant text not null,
  workflow text not null,
  rule text not null,
  zone text not null default 'UTC',
  request bytea not null,
  policy jsonb not null default '{}',
  due timestamptz,                                      -- a column of the schedule itself: it cannot be lost
  paused boolean not null default false
);
