-- Subscribers, what is to be asked about them, and the batches in which it is asked.

create schema enrichment;

create table enrichment.subscribers (
  id bigint generated always as identity primary key,
  email text not null unique,
  email_type text not null check (email_type in ('personal', 'corporate')),
  source text not null,
  raw_payload json not null,
  profile json,                       -- who it is, once it is known
  created_at timestamptz not null default clock_timestamp(),
  enriched_at timestamptz
);

-- One per personal subscriber. `batched` belongs to the batch; what has a result keeps it, whatever becomes of the batch.
create table enrichment.jobs (
  id bigint generated always as identity primary key,
  subscriber bigint not null unique references enrichment.subscribers,
  state text not null default 'pending' check (state in ('pending', 'batched', 'enriched', 'absent', 'failed')),
  batch text,
  tries int not null default 0,
  reason text,
  again_at timestamptz,               -- of a failed job whose reason passes: when it may be claimed once more
  written int not null default 0,     -- how often a result was written; more than once is a bug
  check (state <> 'batched' or batch is not null)
);
create index jobs_pending on enrichment.jobs (id) where state = 'pending';
create index jobs_again on enrichment.jobs (again_at) where state = 'failed' and again_at is not null;
create index jobs_of_batch on enrichment.jobs (batch) where batch is not null;

-- The id is the execution's, which the provider echoes. `submitting`: the provider may have it, whether or not it has answered.
create table enrichment.batches (
  id text primary key,
  part_of text,
  trigger text not null,
  state text not null default 'claimed' check (state in ('claimed', 'submitting', 'submitted', 'closed')),
  enrichment_id text,
  jobs int not null,
  credits double precision,           -- what it cost, as soon as the provider says so; before that a credit a job is kept back
  ended text,
  reason text,
  created_at timestamptz not null default clock_timestamp(),
  closed_at timestamptz
);
create index batches_open on enrichment.batches (enrichment_id) where closed_at is null;
create index batches_of_month on enrichment.batches (created_at);

-- Locked by claims where a monthly budget is set: two of them at once would both see the same rest of it.
create table enrichment.purse (one boolean primary key default true check (one));
insert into enrichment.purse default values;
