-- Budgets that all workers share, and the order in which due executions are claimed.

drop table flowdsl.rate_limits;

create table flowdsl.budgets (
  kind text not null check (kind in ('rate', 'slots')),
  name text not null,
  scope text not null,                                  -- '', or the tenant or workflow that has the limit for itself
  ceiling integer not null,
  per bigint,                                           -- of a rate: microseconds
  burst integer,
  debt numeric not null default 0,                      -- of a rate: each call adds `per`, each microsecond takes `ceiling` off
  at timestamptz not null default clock_timestamp(),    -- what the debt was then
  rests_until timestamptz not null default '-infinity', -- the other side wants to be left alone
  declared timestamptz not null,                        -- when the worker began whose declaration this is: the newest counts
  primary key (kind, name, scope)
) with (fillfactor = 50);

-- Who holds a slot. A row counts for as long as its worker is not gone.
create table flowdsl.slots (
  worker uuid not null,
  ticket bigint not null,                               -- the worker's number for the attempt
  name text not null,
  scope text not null,
  taken timestamptz not null default clock_timestamp(),
  primary key (worker, ticket, name, scope)
);
create index slots_budget on flowdsl.slots (name, scope);

-- How many attempts wait in which worker, so that workers take turns.
create table flowdsl.demands (
  kind text not null,
  name text not null,
  scope text not null,
  worker uuid not null,
  wanted integer not null,
  until timestamptz not null,                           -- a demand that is not renewed is forgotten
  served timestamptz not null,
  primary key (kind, name, scope, worker)
) with (fillfactor = 50);

-- What is due, oldest first; and, for claims under a flood, tenant by tenant. What is blocked never has a time to wake: that the first index says so
-- keeps the planner from walking through one tenant's flood in search of another's few.
drop index flowdsl.executions_due;
create index executions_due on flowdsl.executions (wake) where owner is null and wake is not null and status <> 'blocked';
create index executions_fair on flowdsl.executions (workflow, tenant, wake) where owner is null and wake is not null;
