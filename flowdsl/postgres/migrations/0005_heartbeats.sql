-- What the heartbeats of running attempts have told, for the attempt after them: no order, at most a few seconds old. Never in the journal, which
-- it would fill, and which everything else of the execution would have to wait for.
create table flowdsl.heartbeats (
  execution uuid not null,
  place text not null,                                  -- the step's idempotency key without the execution
  epoch integer not null,                               -- of the owner that wrote it: an older one changes nothing any more
  number integer not null,
  body bytea not null,
  at timestamptz not null default clock_timestamp(),
  primary key (execution, place)
) with (fillfactor = 70);                               -- room for rewriting a row where it is
