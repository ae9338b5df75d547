-- Up to `p_limit` executions that are due, or whose owner is gone. After the second death without an entry in
-- between an execution is taken alone, so that its neighbours are not blamed for the third, which blocks it.
create or replace function flowdsl.claim(p_worker uuid, p_limit integer, p_workflows text[], p_suspect boolean) returns table (
  id uuid, tenant text, workflow text, version integer, scope text, key text, parent uuid, parent_step text, detached boolean, epoch integer,
  deaths integer, mail integer, request bytea, started timestamptz, taken_over boolean, blocked boolean
) language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$  -- finished rows must not slow the living
#variable_conflict use_column
begin
  perform 1 from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  if not found then
    return;
  end if;
  return query
    with due as (
      select x.id from flowdsl.executions x
       where x.owner is null and x.wake <= clock_timestamp() and x.workflow = any(p_workflows)
       order by x.wake limit p_limit for update skip locked)
    update flowdsl.executions x set owner = p_worker, epoch = x.epoch + 1, wake = null, status = 'running'
      from due where x.id = due.id
    returning x.id, x.tenant, x.workflow, x.version, x.scope, x.key, x.parent, x.parent_step, x.detached, x.epoch, x.deaths, x.mail, x.request, x.started,
      false, false;
  return query
    with orphan as (
      select x.id from flowdsl.workers w join flowdsl.executions x on x.owner = w.id
       where w.gone and x.workflow = any(p_workflows) and x.deaths < 1
       limit p_limit for update of x skip locked),
    suspect as (
      select x.id from flowdsl.workers w join flowdsl.executions x on x.owner = w.id
       where w.gone and x.workflow = any(p_workflows) and x.deaths >= 1 and p_suspect
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
