-- What each tenant may ask of the service in a minute is kept beside the budgets, under a kind that no activity's budget has; and what is known of
-- the trace in which somebody asked for an execution.

alter table flowdsl.budgets drop constraint budgets_kind_check;
alter table flowdsl.budgets add constraint budgets_kind_check check (kind in ('rate', 'slots', 'allowance'));

create table flowdsl.traces (
  execution uuid primary key,
  parent text not null,                                 -- W3C traceparent of who started it
  at timestamptz not null default clock_timestamp()
);
create index traces_at on flowdsl.traces (at);
