-- Starts, in the order of their keys. A start that is repeated finds itself by its id. Outcome: new | again | joined | rejected.
-- Who holds a key is locked first, in the order of ids. A holder that came later may be locked by one who waits for us: lock_not_available, and
-- the whole is to be tried again.
-- Those of `p_here` begin as the worker's own if they are new, without a claim: `mine`. To repeat it never says so again: the answer was lost, and the
-- worker finds them when it looks around.
drop function if exists flowdsl.start(uuid[], text[], text[], integer[], text[], text[], text[], bytea[], uuid[], text[], boolean[]);
drop function if exists flowdsl.start(uuid[], text[], text[], integer[], text[], text[], text[], bytea[], uuid[], text[], boolean[], boolean[]);
create or replace function flowdsl.start(
  p_ids uuid[], p_tenants text[], p_workflows text[], p_versions integer[], p_scopes text[], p_keys text[], p_reuses text[],
  p_requests bytea[], p_parents uuid[], p_parent_steps text[], p_detached boolean[], p_terminates boolean[] default '{}',
  p_worker uuid default null, p_here boolean[] default '{}'
) returns table (asked uuid, id uuid, outcome text, status text, started timestamptz, mine boolean) language plpgsql as $$
#variable_conflict use_column
declare
  s record;
  holder record;
  here uuid;
begin
  if p_worker is not null then
    select w.id into here from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  end if;
  perform 1 from flowdsl.executions x where x.id = any(p_parents || array(
      select h.id from unnest(p_tenants, p_workflows, p_scopes, p_keys) as t(tenant, workflow, scope, key)
        join flowdsl.executions h on h.tenant = t.tenant and h.workflow = t.workflow and h.scope = t.scope and h.key = t.key and h.current))
    order by x.id for no key update;
  for s in
    select * from unnest(p_ids, p_tenants, p_workflows, p_versions, p_scopes, p_keys, p_reuses, p_requests, p_parents, p_parent_steps, p_detached, p_terminates, p_here)
      as t(id, tenant, workflow, version, scope, key, reuse, request, parent, parent_step, detached, terminates, here)
     order by t.tenant, t.workflow, t.scope, t.key, t.id
  loop
    loop
      mine := here is not null and coalesce(s.here, false);
      insert into flowdsl.executions as n (id, tenant, workflow, version, scope, key, request, parent, parent_step, detached, terminates, owner, epoch, wake)
      values (s.id, s.tenant, s.workflow, s.version, s.scope, s.key, s.request, s.parent, s.parent_step, s.detached, coalesce(s.terminates, false),
              case when mine then here end, case when mine then 1 else 0 end, case when mine then null else clock_timestamp() end)
      on conflict do nothing
      returning n.started into started;
      if found then
        asked := s.id; id := s.id; outcome := 'new'; status := 'running';
        exit;
      end if;
      mine := false;
      select x.id, x.status into holder from flowdsl.executions x where x.id = s.id;
      if found then
        asked := s.id; id := s.id; outcome := 'again'; status := holder.status;
        exit;
      end if;
      select x.id, x.status, x.exit, x.parent into holder from flowdsl.executions x
       where x.tenant = s.tenant and x.workflow = s.workflow and x.scope = s.scope and x.key = s.key and x.current for no key update nowait;
      if not found then
        continue;  -- it was let go between the two statements
      end if;
      if (s.reuse = 'after_close' and holder.status in ('succeeded', 'failed', 'cancelled'))
         or (s.reuse = 'after_failure' and holder.status in ('failed', 'cancelled')) then
        update flowdsl.executions x set current = false where x.id = holder.id;
        continue;
      end if;
      asked := s.id; id := holder.id; status := holder.status;
      outcome := case when s.reuse = 'reject' then 'rejected' else 'joined' end;
      if outcome = 'joined' and s.parent is not null then
        update flowdsl.executions x set parent = s.parent, parent_step = s.parent_step, detached = s.detached, terminates = coalesce(s.terminates, false)
         where x.id = holder.id and x.parent is distinct from s.parent  -- one whose parent is open stays with it: that parent may wait for its exit
           and not exists (select 1 from flowdsl.executions p where p.id = x.parent and p.status in ('running', 'suspended', 'blocked'));
        if holder.status in ('succeeded', 'failed', 'cancelled') then
          perform flowdsl.post(array[s.parent], array['exit'], array[holder.id::text], array[null::text], array[holder.exit]);
        end if;
      end if;
      exit;
    end loop;
    return next;
  end loop;
end $$;

-- Starts without a key, by the worker that will run them: they begin as its own, without a claim. Says whether they are the worker's (not when that was
-- declared gone meanwhile: then anybody may claim them). One that is known already is a unique violation, and none is recorded: `flowdsl.start` takes
-- them apart. Hardly ever is one, and a conflict clause costs each of them more log.
create or replace function flowdsl.begin(p_worker uuid, p_ids uuid[], p_tenants text[], p_workflows text[], p_versions integer[], p_requests bytea[])
returns table (id uuid, started timestamptz, mine boolean) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  here uuid;
begin
  select w.id into here from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  return query
    insert into flowdsl.executions as n (id, tenant, workflow, version, request, owner, epoch, wake)
    select t.id, t.tenant, t.workflow, t.version, t.request, here, case when here is null then 0 else 1 end,
           case when here is null then clock_timestamp() end
      from unnest(p_ids, p_tenants, p_workflows, p_versions, p_requests) as t(id, tenant, workflow, version, request)
     order by t.id
    returning n.id, n.started, n.owner is not null;
end $$;
