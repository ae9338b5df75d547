-- Webhooks that were received: stored first, then acted on. A delivery acts once.

create table flowdsl.webhooks (
  id bigint generated always as identity primary key,
  tenant text not null,
  endpoint text not null,
  delivery text not null,
  body bytea not null,
  at timestamptz not null default clock_timestamp(),
  tries integer not null default 0,
  due timestamptz default clock_timestamp(),            -- when it is acted on, or tried again; null: that is over
  outcome text,                                         -- what came of it, or why it failed so far
  unique (tenant, endpoint, delivery)
);
create index webhooks_due on flowdsl.webhooks (due) where due is not null;
create index webhooks_at on flowdsl.webhooks (tenant, at);
