-- Starts, in the order of their keys. A start that is repeated finds itself by its id. Outcome: new | again | joined | rejected.
-- Who holds a key is locked first, in the order of ids. A holder that came later may be locked by one who waits for us: lock_not_available, and
-- the whole is to be tried again.
drop function if exists flowdsl.start(uuid[], text[], text[], integer[], text[], text[], text[], bytea[], uuid[], text[], boolean[]);
create or replace function flowdsl.start(
  p_ids uuid[], p_tenants text[], p_workflows text[], p_versions integer[], p_scopes text[], p_keys text[], p_reuses text[],
  p_requests bytea[], p_parents uuid[], p_parent_steps text[], p_detached boolean[], p_terminates boolean[] default '{}'
) returns table (asked uuid, id uuid, outcome text, status text) language plpgsql as $$
#variable_conflict use_column
declare
  s record;
  holder record;
begin
  perform 1 from flowdsl.executions x where x.id = any(p_parents || array(
      select h.id from unnest(p_tenants, p_workflows, p_scopes, p_keys) as t(tenant, workflow, scope, key)
        join flowdsl.executions h on h.tenant = t.tenant and h.workflow = t.workflow and h.scope = t.scope and h.key = t.key and h.current))
    order by x.id for no key update;
  for s in
    select * from unnest(p_ids, p_tenants, p_workflows, p_versions, p_scopes, p_keys, p_reuses, p_requests, p_parents, p_parent_steps, p_detached, p_terminates)
      as t(id, tenant, workflow, version, scope, key, reuse, request, parent, parent_step, detached, terminates)
     order by t.tenant, t.workflow, t.scope, t.key, t.id
  loop
    loop
      insert into flowdsl.executions (id, tenant, workflow, version, scope, key, request, parent, parent_step, detached, terminates, wake)
      values (s.id, s.tenant, s.workflow, s.version, s.scope, s.key, s.request, s.parent, s.parent_step, s.detached, coalesce(s.terminates, false), clock_timestamp())
      on conflict do nothing;
      if found then
        asked := s.id; id := s.id; outcome := 'new'; status := 'running';
        exit;
      end if;
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

-- Starts without a key, by the worker that will run them: they begin as its own, without a claim. To repeat it changes nothing; the answer says of
-- each when it began, and whether it is the worker's (not when that was declared gone meanwhile: then anybody may claim it).
create or replace function flowdsl.begin(p_worker uuid, p_ids uuid[], p_tenants text[], p_workflows text[], p_versions integer[], p_requests bytea[])
returns table (id uuid, started timestamptz, mine boolean) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  here uuid;
begin
  select w.id into here from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  insert into flowdsl.executions (id, tenant, workflow, version, request, owner, epoch, wake)
  select t.id, t.tenant, t.workflow, t.version, t.request, here, case when here is null then 0 else 1 end,
         case when here is null then clock_timestamp() end
    from unnest(p_ids, p_tenants, p_workflows, p_versions, p_requests) as t(id, tenant, workflow, version, request)
   order by t.id
  on conflict do nothing;
  return query
    select t.id, x.started, coalesce(x.owner = p_worker and x.epoch = 1, false)
      from unnest(p_ids) as t(id), lateral (select e.started, e.owner, e.epoch from flowdsl.executions e where e.id = t.id offset 0) x;
end $$;
