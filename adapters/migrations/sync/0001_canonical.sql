-- What a sync keeps: the records, how far it has come, and the request budget that all processes share.

create schema sync;

-- One row per record of a source. A record that is gone stays, with the time at which we knew.
create table sync.records (
  org text not null,
  adapter text not null,
  entity text not null,
  id text not null,
  owner text,                         -- the record it hangs on, in the entity that the manifest names
  changed timestamptz,                -- the source's own time of change, where there is one
  attributes json not null,           -- as the source wrote them; json, not jsonb, because it keeps what text cannot: \u0000
  relationships json not null,
  fetched_at timestamptz not null,    -- this database's time before the request that brought the content
  seen_at timestamptz not null,       -- the same for the last request that met the record; -infinity: in doubt
  deleted_at timestamptz,
  successor text,                     -- merged into
  primary key (org, adapter, entity, id)
);
create index records_of_owner on sync.records (org, adapter, entity, owner) where deleted_at is null;
create index records_gone on sync.records (org, adapter, entity) where deleted_at is not null;
create index records_in_doubt on sync.records (org, adapter, entity) where deleted_at is null and seen_at = '-infinity';

-- Whether new content may take the place of old. Times of change have a resolution of a second, and some changes do not move them:
-- between equals the later request wins. What is known to be gone comes back only by a later request.
create function sync.newer(old_changed timestamptz, old_fetched timestamptz, gone boolean, new_changed timestamptz, new_fetched timestamptz)
returns boolean language sql immutable as $$
  select (not gone and coalesce(new_changed > old_changed, false))
      or (new_fetched >= old_fetched and coalesce(new_changed >= old_changed, true))
$$;

-- Work to do: read all rows of `entity` under this owner again.
create table sync.rereads (
  org text not null,
  adapter text not null,
  entity text not null,
  owner text not null,
  asked_at timestamptz not null,      -- a reading that began earlier does not count
  primary key (org, adapter, entity, owner)
);

-- Relationships that were filled in after both sides were loaded.
create table sync.links (
  org text not null,
  adapter text not null,
  entity text not null,
  id text not null,
  relationship text not null,
  target text not null,
  target_id text not null,
  primary key (org, adapter, entity, relationship, id, target_id)
);
create index links_to on sync.links (org, adapter, target, target_id);

-- How far the sync of an entity has come.
create table sync.statuses (
  org text not null,
  adapter text not null,
  entity text not null,
  watermark timestamptz,              -- the newest change that a whole walk has seen; never a time of our own
  unlisted bigint not null default 0, -- rows that the source counts and does not list, when we last compared
  sync_type text not null,
  records bigint not null,
  completed_at timestamptz not null,
  primary key (org, adapter, entity)
);

-- Requests drawn per credential, in the newest twenty twentieths of a period. Losing this in a crash costs a few refusals.
create unlogged table sync.budgets (
  credential text primary key,
  quota int not null default 100,
  period double precision not null default 20,
  drawn int[] not null default array_fill(0, array[20]),
  slot bigint not null default 0,
  others int not null default 0,      -- what the source counted beyond our own
  others_until timestamptz not null default '-infinity',
  blocked_until timestamptz not null default '-infinity'
);

-- Up to `wanted` requests from the share of the quota that may be used; else how long to wait.
create function sync.draw(wanted_credential text, wanted int, share double precision)
returns table (granted int, wait double precision, at timestamptz, quota int, period double precision, ours int, others int)
language plpgsql as $$
declare
  budget sync.budgets;
  this_slot bigint;
  shift int;
begin
  perform set_config('synchronous_commit', 'off', true);
  insert into sync.budgets (credential) values (wanted_credential) on conflict do nothing;
  select * into budget from sync.budgets b where b.credential = wanted_credential for update;
  at := clock_timestamp();
  quota := budget.quota;
  period := budget.period;
  this_slot := greatest(floor(extract(epoch from at) * 20 / period), budget.slot);
  shift := least(this_slot - budget.slot, 20);
  budget.drawn := (budget.drawn || array_fill(0, array[shift]))[shift + 1:shift + 20];
  ours := (select sum(one) from unnest(budget.drawn) one);
  others := case when budget.others_until > at then budget.others else 0 end;
  granted := 0;
  wait := 0;
  if budget.blocked_until > at then
    wait := extract(epoch from budget.blocked_until - at);
  elsif floor(quota * share) > ours + others then
    granted := least(wanted, floor(quota * share) - ours - others);
    budget.drawn[20] := budget.drawn[20] + granted;
    ours := ours + granted;
  else -- until the oldest requests are a period old
    wait := coalesce((select (this_slot + min(place)) * period / 20 - extract(epoch from at)
                        from unnest(budget.drawn) with ordinality as one (count, place) where count > 0), 0);
    if others > 0 then
      wait := least(nullif(wait, 0), extract(epoch from budget.others_until - at));
    end if;
  end if;
  update sync.budgets b set drawn = budget.drawn, slot = this_slot where b.credential = wanted_credential;
  return next;
end $$;

-- What the source said about its quota.
create function sync.learn(known_credential text, known_quota int, known_period double precision, others_now int, blocked_for double precision)
returns void language plpgsql as $$
begin
  perform set_config('synchronous_commit', 'off', true);
  insert into sync.budgets (credential) values (known_credential) on conflict do nothing;
  update sync.budgets b set
      quota = coalesce(known_quota, b.quota),
      period = coalesce(known_period, b.period),
      -- Slots are twentieths of a period: under another period all that was drawn counts as drawn now.
      drawn = case when coalesce(known_period, b.period) = b.period then b.drawn
                   else array_fill(0, array[19]) || (select sum(one)::int from unnest(b.drawn) one) end,
      slot = case when coalesce(known_period, b.period) = b.period then b.slot
                  else floor(extract(epoch from clock_timestamp()) * 20 / known_period) end,
      others = coalesce(others_now, b.others),
      others_until = case when others_now is null then b.others_until
                          else clock_timestamp() + make_interval(secs => coalesce(known_period, b.period)) end,
      blocked_until = greatest(b.blocked_until, clock_timestamp() + make_interval(secs => coalesce(blocked_for, 0)))
    where b.credential = known_credential;
end $$;
