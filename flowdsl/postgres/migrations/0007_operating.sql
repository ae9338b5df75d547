-- Dead letters: executions that failed or are blocked, until a person retried or discarded them.

alter table flowdsl.executions add column discarded timestamptz;

alter table flowdsl.executions add column terminates boolean not null default false;  -- when its parent ends first: at once, not asked to

create index executions_dead on flowdsl.executions (started) where status in ('failed', 'blocked') and discarded is null;
