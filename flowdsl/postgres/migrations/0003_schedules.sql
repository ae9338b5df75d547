-- Schedules: the due time is a column of the schedule itself. There is no timer beside it that could be missing, and it moves in the
-- transaction of the start that it causes.

drop table flowdsl.schedules;  -- a first shape that nothing ever wrote to

create table flowdsl.schedules (
  id text primary key,
  tenant text not null,
  workflow text not null,
  version integer not null,
  request bytea not null,
  rule text not null,                                   -- as somebody wrote it; what it names is kept in UTC
  zone text not null,
  jitter interval not null,
  overlap text not null check (overlap in ('skip', 'queue', 'allow')),
  catch_up text not null check (catch_up in ('skip', 'one', 'all')),
  within interval not null,
  upcoming timestamptz,                                 -- the first instant that is not decided on
  due timestamptz,                                      -- when that is: the instant and its jitter
  queued timestamptz,                                   -- an instant that waits until the last execution has ended
  last timestamptz,                                     -- the newest instant that was started, when, and as which execution
  last_at timestamptz,
  last_execution uuid,
  paused boolean not null default false,
  in_code boolean not null default true,                -- false: no deployment names it any more
  problem text,                                         -- why it cannot be planned; it is tried again
  check ((due is null) = (upcoming is null)),
  check (due is not null or not in_code)
);
create index schedules_due on flowdsl.schedules (due) where not paused;
create index schedules_queued on flowdsl.schedules (id) where queued is not null;

-- What became of an instant. Its primary key is the first of two that let an instant start one execution; the other is the execution's own.
create table flowdsl.firings (
  schedule text not null,
  instant timestamptz not null,
  outcome text not null check (outcome in ('started', 'queued', 'skipped', 'missed')),
  cause text not null check (cause in ('due', 'triggered', 'backfilled')),
  execution uuid,                                       -- that it started; of a skipped or queued one, the one in its way
  at timestamptz not null default clock_timestamp(),
  primary key (schedule, instant)
);
