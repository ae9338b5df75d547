-- A signal or a wish to cancel, from outside, to an execution's id or, for a signal, to a correlation key. The delivery id acts once.
-- Outcome: sent | again | ended | unmatched. What nobody waits for is kept under its key for the next who does.
create or replace function flowdsl.send(p_tenant text, p_to text, p_kind text, p_name text, p_body bytea, p_delivery text)
returns text language plpgsql as $$
declare
  target uuid;
  found_status text;
  alias_key text;
  from_scope text := p_tenant || '/' || p_name || '/' || p_to;
begin
  select x.id into target from flowdsl.executions x where x.id = flowdsl.as_id(p_to) and x.tenant = p_tenant;
  if target is null then
    if p_kind <> 'signal' then
      return 'unmatched';
    end if;
    insert into flowdsl.aliases as a (tenant, name, key) values (p_tenant, p_name, p_to)
      on conflict (tenant, name, key) do update set key = excluded.key returning a.execution into target;
    alias_key := p_to;
  end if;
  if target is not null then
    select x.status into found_status from flowdsl.executions x where x.id = target for no key update;
    if found_status is null or found_status not in ('running', 'suspended', 'blocked') then
      target := null;
      if alias_key is null then
        return case when exists (select 1 from flowdsl.deliveries where scope = from_scope and delivery = p_delivery) then 'again' else 'ended' end;
      end if;
    end if;
  end if;
  insert into flowdsl.deliveries (scope, delivery) values (from_scope, p_delivery) on conflict do nothing;
  if not found then
    return 'again';
  end if;
  if target is null then
    insert into flowdsl.unmatched (tenant, name, key, delivery, body) values (p_tenant, p_name, p_to, p_delivery, p_body) on conflict do nothing;
    return 'unmatched';
  end if;
  perform flowdsl.post(array[target], array[p_kind], array[p_name], array[alias_key], array[p_body]);
  return 'sent';
end $$;

-- An execution waits for a correlation key: what came before is moved to it, in the order of its arrival.
create or replace function flowdsl.register(p_tenant text, p_name text, p_key text, p_execution uuid) returns void language plpgsql as $$
declare
  moved record;
begin
  insert into flowdsl.aliases (tenant, name, key, execution) values (p_tenant, p_name, p_key, p_execution)
    on conflict (tenant, name, key) do update set execution = excluded.execution;
  perform 1 from flowdsl.executions where id = p_execution and status in ('running', 'suspended', 'blocked') for no key update;
  if not found then
    return;  -- it has ended meanwhile
  end if;
  for moved in
    with taken as (delete from flowdsl.unmatched u where u.tenant = p_tenant and u.name = p_name and u.key = p_key returning u.seq, u.body)
    select body from taken order by seq
  loop
    perform flowdsl.post(array[p_execution], array['signal'], array[p_name], array[p_key], array[moved.body]);
  end loop;
end $$;

-- The same signal to many executions by their ids, in one round trip and one commit. One outcome each, in the order given: sent | again | ended |
-- unmatched (there is no such execution: nothing is kept).
create or replace function flowdsl.send_many(p_tenant text, p_to uuid[], p_name text, p_body bytea[], p_delivery text[])
returns text[] language plpgsql as $$
declare
  living uuid[];
  known text[];
  fresh bigint[];
begin
  with locked as (
    select x.id, x.status from flowdsl.executions x where x.id = any(p_to) and x.tenant = p_tenant order by x.id for no key update)
  select array_agg(id) filter (where status in ('running', 'suspended', 'blocked')), array_agg(id::text) into living, known from locked;
  with wish as (
    select t.id, t.delivery, min(t.n) as n from unnest(p_to, p_delivery) with ordinality as t(id, delivery, n)
     where t.id = any(living) group by t.id, t.delivery),
  first as (
    insert into flowdsl.deliveries (scope, delivery)
    select p_tenant || '/' || p_name || '/' || w.id::text, w.delivery from wish w order by 1, 2
    on conflict do nothing returning scope, delivery)
  select coalesce(array_agg(w.n order by w.n), '{}') into fresh
    from wish w join first f on f.scope = p_tenant || '/' || p_name || '/' || w.id::text and f.delivery = w.delivery;
  if cardinality(fresh) > 0 then
    perform flowdsl.post(array_agg(t.id order by t.n), array_agg('signal'::text), array_agg(p_name), array_agg(null::text), array_agg(t.body order by t.n))
      from unnest(p_to, p_body) with ordinality as t(id, body, n) where t.n = any(fresh);
  end if;
  return (
    select array_agg(case
        when t.n = any(fresh) then 'sent'
        when t.id = any(living) then 'again'
        when t.id::text = any(known) then 'ended'
        else 'unmatched' end order by t.n)
      from unnest(p_to) with ordinality as t(id, n));
end $$;
