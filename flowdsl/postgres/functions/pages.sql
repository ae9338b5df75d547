-- One page of executions, newest first. Null asks for nothing. `p_dead`: what failed or is blocked, and was not discarded;
-- `p_text`: a pattern.
-- It is planned for what is asked each time, and stops at the end of the page: the planner takes what is sought to be spread evenly, and would rather
-- sort the little that it believes there is than read in order. What is rare is read by an index of its own.
create or replace function flowdsl.page(
  p_tenant text, p_workflow text, p_status text, p_ended boolean, p_dead boolean, p_parent uuid, p_since timestamptz, p_until timestamptz, p_text text,
  p_id uuid, p_after timestamptz, p_after_id uuid, p_limit integer
) returns table (id uuid, started timestamptz) language plpgsql stable rows 50
  set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  waits boolean := coalesce(p_status in ('running', 'suspended', 'blocked'), false);
  few boolean := waits or p_dead or coalesce(p_status in ('failed', 'cancelled'), false);
begin
  return query
    with fits as not materialized (
      select x.id, x.started, x.owner from flowdsl.executions x
       where (p_tenant is null or x.tenant = p_tenant) and (p_workflow is null or x.workflow = p_workflow)
         and (p_status is null or x.status = p_status)
         and (not p_ended or x.status in ('succeeded', 'failed', 'cancelled'))
         and (not p_dead or x.status in ('failed', 'blocked') and x.discarded is null)
         and (p_parent is null or x.id = any(array(select c.id from flowdsl.executions c where c.parent = p_parent)))
         and (p_since is null or x.started >= p_since) and (p_until is null or x.started < p_until)
         and (p_text is null or x.key ~* p_text or x.workflow ~* p_text)
         and (p_id is null or x.id = p_id)
         and (p_after is null or x.started <= p_after and (x.started, x.id) < (p_after, p_after_id)))
    select p.id, p.started from (
      (select f.id, f.started from fits f where (p_tenant is not null or not few) and (not waits or f.owner is null)
        order by f.started desc, f.id desc limit p_limit)
      union all  -- the few of all tenants are in no order: they are all read
      (select f.id, f.started from (select * from fits g where p_tenant is null and few and (not waits or g.owner is null) offset 0) f
        order by f.started desc, f.id desc limit p_limit)
      union all
      (select f.id, f.started from fits f where p_status = 'running' and f.owner is not null order by f.started desc, f.id desc limit p_limit)) p
     order by p.started desc, p.id desc limit p_limit;
end $$;
