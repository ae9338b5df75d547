-- Hints: notifications that something may be looked at now. They are sent in a transaction of their own, after the commit that they tell of: in the
-- same one they would make committers queue up. Nothing rests on them: the poll finds the same, a little later.

-- Tells who can do something about what was sent to these (an execution's id, or a correlation key under a tenant and a signal's name), or about
-- open children of these parents: everybody who knows the workflow, if it is due; else its owner, unless that is `p_worker`, who knows already.
-- A payload is a word and at most one id or name. Gives how many were sent: none while the queue of notifications is half full.
create or replace function flowdsl.hint(p_worker uuid, p_tenant text[], p_name text[], p_to text[], p_parents uuid[]) returns integer language plpgsql as $$
declare
  payloads text[];
begin
  if pg_notification_queue_usage() > 0.5 then
    return 0;
  end if;
  with told as (
    select flowdsl.as_id(t.target) as id from unnest(p_to) as t(target) where flowdsl.as_id(t.target) is not null
    union select a.execution from unnest(p_tenant, p_name, p_to) as t(tenant, name, target)
      join flowdsl.aliases a on a.tenant = t.tenant and a.name = t.name and a.key = t.target where flowdsl.as_id(t.target) is null
    union (select x.id from flowdsl.executions x where x.parent = any(p_parents) and x.status in ('running', 'suspended') limit 200)),
  target as (
    select x.id, x.workflow, x.owner, count(*) over (partition by x.owner) as n
      from told, lateral (select e.id, e.workflow, e.owner, e.wake from flowdsl.executions e where e.id = told.id offset 0) x
     where case when x.owner is null then x.wake <= clock_timestamp() else x.owner is distinct from p_worker end)
  select array_agg(distinct case when owner is null then 'due ' || left(workflow, 200) when n <= 8 then 'mail ' || id else 'look ' || owner end)
    into payloads from target;
  if cardinality(payloads) > 32 then
    payloads := array['due', 'look'];
  end if;
  perform pg_notify('flowdsl', payload) from unnest(payloads) as u(payload);
  return coalesce(cardinality(payloads), 0);
end $$;
