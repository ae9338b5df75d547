-- What people do to executions. Each raises the epoch: whoever owned the execution records nothing more of it, and no machine kept warm is valid.

-- One more entry, whose `live` set says what still stands; then the execution is open again. `p_epoch` and `p_position` are those that the plan was
-- made from. Outcome: done | changed (somebody was first: plan anew).
create or replace function flowdsl.intervene(
  p_tenant text, p_execution uuid, p_epoch integer, p_position integer, p_from text[], p_body bytea, p_live text,
  m_name text[], m_key text[], m_body bytea[], p_started uuid[], p_event text, p_facts bytea
) returns text language plpgsql as $$
declare
  taken_back uuid[];
begin
  select coalesce(array_agg(c.id), '{}') into taken_back from flowdsl.executions c
   where c.id = any(p_started) and c.parent = p_execution and c.key is null and not c.detached and c.status in ('running', 'suspended', 'blocked');
  perform 1 from flowdsl.executions x where x.id = any(p_execution || taken_back) order by x.id for no key update;
  if not exists (select 1 from flowdsl.executions x
                  where x.id = p_execution and x.tenant = p_tenant and x.epoch = p_epoch and x.status = any(p_from)) then
    return 'changed';
  end if;
  begin
    insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
    select p_execution, p_position, p_epoch + 1, 9, greatest(clock_timestamp(), j.at), '', 'operator', '', p_body, p_live::int4multirange
      from (select max(j.at) as at, coalesce(max(j.position) + 1, 0) as next from flowdsl.journal j where j.execution = p_execution) j
     where j.next = p_position;
  exception when unique_violation then
    return 'changed';
  end;
  if not exists (select 1 from flowdsl.journal j where j.execution = p_execution and j.position = p_position and j.epoch = p_epoch + 1) then
    return 'changed';
  end if;
  update flowdsl.executions x
     set status = 'running', owner = null, epoch = x.epoch + 1, wake = clock_timestamp(), exit = null, cause = null, ended = null, deaths = 0,
         discarded = null
   where x.id = p_execution;
  -- Children that are retried end anew, and the rows of the others tell how they ended; a wish to pause was for before.
  delete from flowdsl.mailbox m where m.execution = p_execution and m.kind in ('exit', 'pause');
  perform flowdsl.post(
    array_fill(p_execution, array[cardinality(m_name)]) || taken_back,
    array_fill('signal'::text, array[cardinality(m_name)]) || array_fill('cancel'::text, array[cardinality(taken_back)]),
    m_name || array_fill(''::text, array[cardinality(taken_back)]),
    m_key || array_fill(null::text, array[cardinality(taken_back)]),
    m_body || array_fill('"its start was taken back"'::bytea, array[cardinality(taken_back)]));
  perform flowdsl.audited(p_tenant, p_execution, p_event, p_facts);
  return 'done';
end $$;

-- Lets a blocked execution go on. Outcome: resumed | undos (they failed: it takes an intervention) | the status that it has | missing.
create or replace function flowdsl.resume(p_tenant text, p_execution uuid, p_facts bytea) returns text language plpgsql as $$
declare
  x record;
begin
  select e.status, e.exit into x from flowdsl.executions e where e.id = p_execution and e.tenant = p_tenant for no key update;
  if not found then
    return 'missing';
  elsif x.status <> 'blocked' then
    return x.status;
  elsif x.exit is not null then
    return 'undos';
  end if;
  delete from flowdsl.mailbox m where m.execution = p_execution and m.kind = 'pause';
  update flowdsl.executions e
     set status = 'running', owner = null, epoch = e.epoch + 1, wake = clock_timestamp(), cause = null, deaths = 0, discarded = null
   where e.id = p_execution;
  perform flowdsl.audited(p_tenant, p_execution, 'RESUMED', p_facts);
  return 'resumed';
end $$;

-- Ends an execution at once: no finalizer, no undo. Its parent is told, its children are cancelled. Outcome: terminated | the status that it has | missing.
create or replace function flowdsl.terminate(p_tenant text, p_execution uuid, p_body bytea, p_exit bytea, p_facts bytea)
returns text language plpgsql as $$
declare
  x record;
  family uuid[];
  orphans uuid[];
  wishes text[];
begin
  select e.parent, e.detached into x from flowdsl.executions e where e.id = p_execution and e.tenant = p_tenant;
  if not found then
    return 'missing';
  end if;
  orphans := array(select c.id from flowdsl.executions c
                    where c.parent = p_execution and not c.detached and c.status in ('running', 'suspended', 'blocked'));
  family := p_execution || orphans || case when x.parent is null then '{}'::uuid[] else array[x.parent] end;
  perform 1 from flowdsl.executions e where e.id = any(family) order by e.id for no key update;
  select e.parent, e.detached, e.status, e.epoch into x from flowdsl.executions e where e.id = p_execution;
  if x.status not in ('running', 'suspended', 'blocked') then
    return x.status;
  end if;
  update flowdsl.executions e
     set status = 'cancelled', owner = null, epoch = e.epoch + 1, wake = null, exit = p_exit, cause = null, ended = clock_timestamp(), deaths = 0
   where e.id = p_execution;
  loop  -- a turn of its owner may be under way: it commits first, or finds this row and is left out
    begin
      insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body)
      select p_execution, coalesce(max(j.position) + 1, 0), x.epoch + 1, 9, greatest(clock_timestamp(), max(j.at)), '', 'operator', '', p_body
        from flowdsl.journal j where j.execution = p_execution;
      exit;
    exception when unique_violation then
    end;
  end loop;
  wishes := array(select case when c.terminates then 'terminate' else 'cancel' end
                    from unnest(orphans) with ordinality as o(id, n) join flowdsl.executions c on c.id = o.id order by o.n);
  perform flowdsl.post(
    orphans || case when x.parent is null or x.detached then '{}'::uuid[] else array[x.parent] end,
    wishes || array['exit'],
    array_fill(''::text, array[cardinality(orphans)]) || array[p_execution::text],
    array_fill(null::text, array[cardinality(orphans)]) || array[null::text],
    array_fill('"cancelled by its parent"'::bytea, array[cardinality(orphans)]) || array[p_exit]);
  perform flowdsl.audited(p_tenant, p_execution, 'TERMINATED', p_facts);
  return 'terminated';
end $$;

-- Starts an execution blocked: nothing of it begins until it is resumed. Outcome as of flowdsl.start; whoever has its key already stays as it is.
create or replace function flowdsl.start_paused(
  p_id uuid, p_tenant text, p_workflow text, p_version integer, p_key text, p_reuse text, p_request bytea
) returns table (id uuid, outcome text, status text) language plpgsql as $$
#variable_conflict use_column
begin
  select s.id, s.outcome, s.status into id, outcome, status from flowdsl.start(
    array[p_id], array[p_tenant], array[p_workflow], array[p_version], array[''], array[p_key], array[p_reuse], array[p_request],
    array[null::uuid], array[''], array[false]) s;
  if outcome = 'new' then
    status := 'blocked';
    update flowdsl.executions x set status = 'blocked', wake = null, cause = 'paused: not begun yet' where x.id = p_id;
  end if;
  return next;
end $$;

-- A new execution with another's entries before a position, some of them edited, and one that says so. `p_request`: its input, where it is not
-- kept as the other's is.
drop function if exists flowdsl.fork(text, uuid, uuid, integer, bytea, text, integer[], smallint[], bytea[], boolean, bytea);
create or replace function flowdsl.fork(
  p_tenant text, p_source uuid, p_id uuid, p_position integer, p_body bytea, p_live text,
  e_position integer[], e_kind smallint[], e_body bytea[], p_paused boolean, p_facts bytea,
  p_request bytea default null
) returns boolean language plpgsql as $$
begin
  insert into flowdsl.executions (id, tenant, workflow, version, request, started, epoch, status, wake, cause)
  select p_id, x.tenant, x.workflow, x.version, coalesce(p_request, x.request), x.started, 1, case when p_paused then 'blocked' else 'running' end,
         case when p_paused then null else clock_timestamp() end, case when p_paused then 'paused: forked' end
    from flowdsl.executions x where x.id = p_source and x.tenant = p_tenant;
  if not found then
    return false;
  end if;
  insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
  select p_id, j.position, 0, coalesce(e.kind, j.kind), j.at, j.step, j.fingerprint, j.site, coalesce(e.body, j.body), j.live
    from flowdsl.journal j left join unnest(e_position, e_kind, e_body) as e(position, kind, body) on e.position = j.position
   where j.execution = p_source and j.position < p_position;
  insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
  select p_id, p_position, 1, 9, greatest(clock_timestamp(), max(j.at)), '', 'operator', '', p_body, p_live::int4multirange
    from flowdsl.journal j where j.execution = p_id;
  perform flowdsl.audited(p_tenant, p_id, 'FORKED', p_facts);
  return true;
end $$;

-- Dead letters that nobody will retry. They stay what they are, and are listed no more.
create or replace function flowdsl.discard(p_tenant text, p_executions uuid[], p_facts bytea) returns setof uuid language plpgsql as $$
declare
  one uuid;
begin
  for one in
    with chosen as (
      select x.id from flowdsl.executions x
       where x.id = any(p_executions) and x.tenant = p_tenant and x.status in ('failed', 'blocked') and x.discarded is null
       order by x.id for no key update)
    update flowdsl.executions x set discarded = clock_timestamp() from chosen where x.id = chosen.id returning x.id
  loop
    perform flowdsl.audited(p_tenant, one, 'DISCARDED', p_facts);
    return next one;
  end loop;
end $$;

-- Deletes up to `p_limit` ended executions that began after `p_since` and not after `p_until`, each with all that belongs to it, in one transaction,
-- which stops early at the length of the journals: it must not hold up who waits for a lock or for cleaned tables. One that an open parent may
-- still join, or whose children are open, stays.
drop function if exists flowdsl.prune(text, text, text[], timestamptz, integer);
create or replace function flowdsl.prune(
  p_tenant text, p_workflow text, p_statuses text[], p_before timestamptz, p_limit integer,
  p_since timestamptz default '-infinity', p_until timestamptz default 'infinity'
) returns integer language plpgsql as $$
declare
  one uuid;
  gone uuid[] := '{}';
  entries bigint := 0;
begin
  for one in
    select x.id from flowdsl.executions x
     where x.tenant = p_tenant and x.started > p_since and x.started <= p_until and x.started < p_before and x.ended < p_before
       and (p_workflow is null or x.workflow = p_workflow)
       and x.status = any(p_statuses) and x.status in ('succeeded', 'failed', 'cancelled')
       and not exists (select 1 from flowdsl.executions p where p.id = x.parent and p.status in ('running', 'suspended', 'blocked'))
       and not exists (select 1 from flowdsl.executions c where c.parent = x.id and c.status in ('running', 'suspended', 'blocked'))
     order by x.started limit p_limit for update skip locked
  loop
    gone := gone || one;
    entries := entries + coalesce((select max(j.position) + 1 from flowdsl.journal j where j.execution = one), 0);
    exit when entries >= 20000;
  end loop;
  delete from flowdsl.executions where id = any(gone);
  delete from flowdsl.journal where execution = any(gone);
  delete from flowdsl.mailbox where execution = any(gone);
  delete from flowdsl.notes where execution = any(gone);
  return cardinality(gone);
end $$;

-- Deletes up to `p_limit` delivery ids, and as many signals that nobody came for, that are older than anybody repeats them.
create or replace function flowdsl.prune_mail(p_before timestamptz, p_limit integer) returns integer language plpgsql as $$
declare
  gone integer;
  unmatched integer;
begin
  delete from flowdsl.deliveries d where (d.scope, d.delivery) in (
    select e.scope, e.delivery from flowdsl.deliveries e where e.at < p_before order by e.at limit p_limit for update skip locked);
  get diagnostics gone = row_count;
  delete from flowdsl.unmatched u where (u.tenant, u.name, u.key, u.delivery) in (
    select v.tenant, v.name, v.key, v.delivery from flowdsl.unmatched v where v.at < p_before limit p_limit for update skip locked);
  get diagnostics unmatched = row_count;
  return gone + unmatched;
end $$;

-- Deletes correlation keys of executions that are no more, of the `p_limit` keys behind one; gives the last that it looked at, while there are more.
create or replace function flowdsl.prune_aliases(p_tenant text, p_name text, p_key text, p_limit integer)
returns table (tenant text, name text, key text) language plpgsql as $$
#variable_conflict use_column
declare
  last record;
begin
  select b.tenant, b.name, b.key into last from (
    select a.tenant, a.name, a.key from flowdsl.aliases a where (a.tenant, a.name, a.key) > (p_tenant, p_name, p_key)
     order by a.tenant, a.name, a.key limit p_limit) b order by b.tenant desc, b.name desc, b.key desc limit 1;
  if not found then
    return;
  end if;
  delete from flowdsl.aliases a
   where (a.tenant, a.name, a.key) > (p_tenant, p_name, p_key) and (a.tenant, a.name, a.key) <= (last.tenant, last.name, last.key)
     and a.execution is not null and not exists (select 1 from flowdsl.executions x where x.id = a.execution);
  return query select last.tenant, last.name, last.key;
end $$;
