create schema if not exists sync;

-- Canonical rows. A body is JSON in ASCII: what text cannot hold (NUL, lone surrogates) is escaped in it, so nothing is lost.
create table sync.records (
  org text not null,
  entity text not null,
  id text not null,
  changed timestamptz,                    -- the row's own last change, by the source
  body text not null,
  owner text,                             -- of a row that is listed below another: that one's id
  seen text not null,                     -- the walk that saw it last
  deleted_at timestamptz,
  primary key (org, entity, id)
);
create index records_owner on sync.records (org, entity, owner) where owner is not null;
create index records_unseen on sync.records (org, entity, seen) where deleted_at is null;

-- References between rows. Linked once both sides are there.
create table sync.links (
  org text not null,
  entity text not null,
  id text not null,
  relation text not null,
  target_entity text not null,
  target_id text not null,
  linked boolean not null default false,
  primary key (org, entity, id, relation, target_id)
);
create index links_target on sync.links (org, target_entity, target_id);

create table sync.status (
  org text not null,
  entity text not null,
  watermark timestamptz,                  -- the highest change seen by a complete walk
  sync_type text not null,
  records bigint not null,
  completed_at timestamptz not null,
  primary key (org, entity)
);

-- One row a credential: its budget is shared by all processes.
create table sync.budgets (
  credential text primary key,
  used integer not null,
  quota integer not null default 100,
  period double precision not null default 20,
  began timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
