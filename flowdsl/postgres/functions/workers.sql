drop function if exists flowdsl.claim(uuid, integer, text[], boolean);
drop function if exists flowdsl.claim(uuid, integer, text[], boolean, integer[], text[], integer[], text);
drop function if exists flowdsl.fair(integer, text[], integer[], text[], integer[], text);

-- Of what is due, up to `p_limit` in the order in which it is to be claimed: by priority, then tenant by tenant, counting what the worker has of each
-- already, then by the time since which it is due. `p_priorities`: of each of `p_workflows`; `p_tenants`, `p_held`: what the worker has.
-- For when more is due than is asked for. It skips from tenant to tenant in an index of what has no owner and a time to wake, so neither what has
-- ended nor how much one tenant has matters (no other index is in the order of tenant and wake: that is why it is asked for); of a workflow with very
-- many tenants it looks at 1000 on both sides of `p_after`.
create or replace function flowdsl.fair(
  p_limit integer, p_workflows text[], p_priorities integer[], p_tenants text[], p_held integer[], p_after text, p_versions text[] default null
) returns uuid[] language plpgsql stable set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  now_ timestamptz := clock_timestamp();
  chosen uuid[] := '{}';
  level uuid[];
  workflows text[];
  tenants text[];
  deep integer;
  full_ boolean;
  priority_ integer;
begin
  for priority_ in
    select distinct coalesce(t.priority, 0) from unnest(p_workflows, p_priorities) as t(workflow, priority) where t.workflow is not null order by 1 desc
  loop
    select coalesce(array_agg(w.name), '{}'), coalesce(array_agg(seen.tenant), '{}') into workflows, tenants
      from (select t.workflow as name from unnest(p_workflows, p_priorities) as t(workflow, priority)
             where t.workflow is not null and coalesce(t.priority, 0) = priority_) w
      cross join lateral (
        (with recursive skip as (
          (select x.tenant from flowdsl.executions x
            where x.owner is null and x.wake is not null and x.workflow = w.name and x.tenant > p_after order by x.tenant, x.wake limit 1)
          union all
          select (select x.tenant from flowdsl.executions x
            where x.owner is null and x.wake is not null and x.workflow = w.name and x.tenant > skip.tenant order by x.tenant, x.wake limit 1)
            from skip where skip.tenant is not null)
        select skip.tenant from skip where skip.tenant is not null limit 1000)
        union all
        (with recursive skip as (
          (select x.tenant from flowdsl.executions x
            where x.owner is null and x.wake is not null and x.workflow = w.name and x.tenant <= p_after order by x.tenant, x.wake limit 1)
          union all
          select (select x.tenant from flowdsl.executions x
            where x.owner is null and x.wake is not null and x.workflow = w.name and x.tenant > skip.tenant and x.tenant <= p_after
            order by x.tenant, x.wake limit 1)
            from skip where skip.tenant is not null)
        select skip.tenant from skip where skip.tenant is not null limit 1000)) seen;
    continue when cardinality(tenants) = 0;
    deep := greatest(1, least(p_limit, 8 * p_limit / cardinality(tenants)));
    loop
      with due as (
        select d.id, d.wake, row_number() over (partition by pair.tenant order by d.wake, d.id) + coalesce(h.held, 0) as turn,
               row_number() over (partition by pair.workflow, pair.tenant order by d.wake, d.id) as depth
          from unnest(workflows, tenants) as pair(workflow, tenant)
          cross join lateral (
            select x.id, x.wake from flowdsl.executions x
             where x.owner is null and x.workflow = pair.workflow and x.tenant = pair.tenant and x.wake <= now_
               and (p_versions is null or x.workflow || '@' || x.version = any(p_versions))
             order by x.wake limit deep) d
          left join (select u.tenant, u.held from unnest(p_tenants, p_held) as u(tenant, held)) h on h.tenant = pair.tenant)
      select array_agg(one.id order by one.turn, one.wake, one.id), (select coalesce(max(due.depth), 0) = deep from due) into level, full_
        from (select due.id, due.turn, due.wake from due order by due.turn, due.wake, due.id limit p_limit - cardinality(chosen)) one;
      exit when coalesce(cardinality(level), 0) >= p_limit - cardinality(chosen) or not full_ or deep >= p_limit;
      deep := least(p_limit, 4 * deep);
    end loop;
    chosen := chosen || coalesce(level, '{}');
    exit when cardinality(chosen) >= p_limit;
  end loop;
  return chosen;
end $$;

-- Up to `p_limit` executions that are due, or whose owner is gone, of the versions that the worker knows ("name@1"). When more is due than is asked for, they are taken fairly (see above). After the second death without an entry in between an execution is taken alone, so that
-- its neighbours are not blamed for the third, which blocks it.
create or replace function flowdsl.claim(
  p_worker uuid, p_limit integer, p_workflows text[], p_suspect boolean,
  p_priorities integer[] default '{}', p_tenants text[] default '{}', p_held integer[] default '{}', p_after text default '',
  p_versions text[] default null
) returns table (
  id uuid, tenant text, workflow text, version integer, scope text, key text, parent uuid, parent_step text, detached boolean, epoch integer,
  deaths integer, mail integer, request bytea, started timestamptz, taken_over boolean, blocked boolean
) language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$  -- finished rows must not slow the living
#variable_conflict use_column
declare
  chosen uuid[];
  now_ timestamptz := clock_timestamp();  -- a condition on the index only as a value: what is not due yet must not be read
begin
  -- Mostly there is nothing. To lock one's own row is to write: an empty claim would wait for the disk.
  if not exists (select 1 from flowdsl.executions x
                  where x.owner is null and x.wake <= now_ and x.status <> 'blocked' and x.workflow = any(p_workflows))
     and not exists (select 1 from flowdsl.workers w where w.gone and exists (select 1 from flowdsl.executions x where x.owner = w.id)) then
    return;
  end if;
  perform 1 from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  if not found then
    return;
  end if;
  perform 1 from flowdsl.executions x
    where x.owner is null and x.wake <= now_ and x.status <> 'blocked' and x.workflow = any(p_workflows)
      and (p_versions is null or x.workflow || '@' || x.version = any(p_versions)) order by x.wake offset p_limit limit 1;
  if found then
    -- Nobody waits here: a worker that is frozen while it is told what it claimed must not hold up the others. Who comes second looks further.
    chosen := flowdsl.fair(case when pg_try_advisory_xact_lock(7162534242) then p_limit else 2 * p_limit end,
                           p_workflows, p_priorities, p_tenants, p_held, p_after, p_versions);
  else
    chosen := array(select x.id from flowdsl.executions x
       where x.owner is null and x.wake <= now_ and x.status <> 'blocked' and x.workflow = any(p_workflows)
         and (p_versions is null or x.workflow || '@' || x.version = any(p_versions)) order by x.wake limit p_limit);
  end if;
  if cardinality(chosen) > 0 then
    return query
      with due as (
        select x.id from flowdsl.executions x where x.id = any(chosen) and x.owner is null and x.wake <= clock_timestamp()
         order by array_position(chosen, x.id) limit p_limit for update skip locked),
      taken as (
        update flowdsl.executions x set owner = p_worker, epoch = x.epoch + 1, wake = null, status = 'running'
          from due where x.id = due.id
        returning x.*)
      select x.id, x.tenant, x.workflow, x.version, x.scope, x.key, x.parent, x.parent_step, x.detached, x.epoch, x.deaths, x.mail, x.request, x.started,
             false, false
        from taken x order by array_position(chosen, x.id);
  end if;
  return query
    with orphan as (
      select x.id from flowdsl.workers w join flowdsl.executions x on x.owner = w.id
       where w.gone and x.workflow = any(p_workflows) and x.deaths < 1
         and (p_versions is null or x.workflow || '@' || x.version = any(p_versions))
       limit p_limit for update of x skip locked),
    suspect as (
      select x.id from flowdsl.workers w join flowdsl.executions x on x.owner = w.id
       where w.gone and x.workflow = any(p_workflows) and x.deaths >= 1 and p_suspect
         and (p_versions is null or x.workflow || '@' || x.version = any(p_versions))
       limit 1 for update of x skip locked)
    update flowdsl.executions x
       set owner = case when x.deaths < 2 then p_worker end, epoch = x.epoch + 1, deaths = x.deaths + 1, wake = null,
           status = case when x.deaths < 2 then 'running' else 'blocked' end,
           cause = case when x.deaths < 2 then null else 'three workers died while they had it: a crash loop' end
      from (select orphan.id from orphan union all select suspect.id from suspect) o where x.id = o.id
    returning x.id, x.tenant, x.workflow, x.version, x.scope, x.key, x.parent, x.parent_step, x.detached, x.epoch, x.deaths, x.mail, x.request, x.started,
      true, x.status = 'blocked';
end $$;

-- Executions that are this worker's and that it does not know: a claim whose answer was lost, a machine that was thrown away. They begin anew in
-- an epoch of their own, so that a turn of theirs that is still under way cannot be taken for one of the new machine.
create or replace function flowdsl.reclaim(p_worker uuid, p_ids uuid[]) returns setof flowdsl.executions language plpgsql as $$
begin
  perform 1 from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  if not found then
    return;
  end if;
  return query
    with mine as (select x.id from flowdsl.executions x where x.id = any(p_ids) and x.owner = p_worker for update skip locked)
    update flowdsl.executions x set epoch = x.epoch + 1 from mine where x.id = mine.id returning x.*;
end $$;

-- Declares workers gone whose last beat is older than their lease. FOR UPDATE waits for the commits they have under way.
create or replace function flowdsl.take_over() returns integer language plpgsql as $$
declare
  found_gone uuid[];
begin
  select array_agg(w.id) into found_gone from (
    select id from flowdsl.workers where not gone and beat < clock_timestamp() - lease order by id for update skip locked) w;
  update flowdsl.workers set gone = true where id = any(found_gone);
  delete from flowdsl.workers w where w.gone and w.beat < clock_timestamp() - interval '1 day'
    and not exists (select 1 from flowdsl.executions x where x.owner = w.id);
  return coalesce(cardinality(found_gone), 0);
end $$;

-- The oldest migration that code must know to work on this store. Raise it with a migration that older code would do harm after; code that is
-- older claims nothing then and says so. Else old and new run side by side, for the length of a deploy.
create or replace function flowdsl.needs() returns text language sql immutable as $$ select 'flowdsl/0001_journal.sql'::text $$;

-- A worker looks around: declares others gone, and learns how many live, when something is due next (an execution, or
-- another's lease), which code the store needs, and how far the server has written its log.
drop function if exists flowdsl.look(uuid);
create or replace function flowdsl.look(p_worker uuid) returns table (gone integer, others integer, next timestamptz, needs text, written numeric) language plpgsql as $$
#variable_conflict use_column
declare
  now_ timestamptz := clock_timestamp();
begin
  return query
    select flowdsl.take_over(), count(w.id)::integer,
           least(min(w.beat + w.lease),
                 (select x.wake from flowdsl.executions x
                  where x.owner is null and x.wake > now_ and x.status <> 'blocked' order by x.wake limit 1)),
           flowdsl.needs(), pg_current_wal_flush_lsn() - '0/0'::pg_lsn
      from flowdsl.workers w where not w.gone and w.id <> p_worker;
end $$;
