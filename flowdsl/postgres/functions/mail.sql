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
    with taken as (delete from flowdsl.unmatched u where u.tenant = p_tenant and u.name = p_name and u.key = p_key returning u.at, u.delivery, u.body)
    select body from taken order by at, delivery
  loop
    perform flowdsl.post(array[p_execution], array['signal'], array[p_name], array[p_key], array[moved.body]);
  end loop;
end $$;
