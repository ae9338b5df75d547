-- The commits. Each function is called as one autocommit statement under READ COMMITTED: one round trip, one commit,
-- and each statement inside has a fresh snapshot. (One statement with data-modifying CTEs has a single snapshot: after waiting for a twin
-- that then committed it would report nothing inserted and nothing seen.)
--
-- Lock order of every transaction: user rows → workers (key share) → aliases by key → executions by id → new executions by key →
-- journal by (execution, position) → deliveries by key. Claims skip what is locked.

-- The narrow form: entries only. Rows come sorted by (execution, position); `head` marks the first of each turn.
-- Returns null when all turns were recorded, else one word a turn: done | again | left | fenced.
create function flowdsl.append(
  p_worker uuid, e_execution uuid[], e_position integer[], e_epoch integer[], e_head boolean[], e_kind smallint[], e_at timestamptz[],
  e_step text[], e_fingerprint text[], e_site text[], e_body bytea[]
) returns text[] language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
  heads integer;
  won uuid[];
begin
  perform 1 from flowdsl.workers where id = p_worker and not gone for key share;
  if not found then
    return (select array_agg('fenced'::text) from unnest(e_head) h where h);
  end if;
  -- A conflict on the first position decides the whole turn: identity is (execution, position, epoch), never equal bytes.
  with head as (
    insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body)
    select t.execution, t.position, t.epoch, t.kind, t.at, t.step, t.fingerprint, t.site, t.body
      from unnest(e_execution, e_position, e_epoch, e_head, e_kind, e_at, e_step, e_fingerprint, e_site, e_body)
        as t(execution, position, epoch, head, kind, at, step, fingerprint, site, body)
     where t.head  -- a look-up for each row: as a join the planner may start from all that the worker owns, for each row anew
       and (select x.epoch = t.epoch and x.owner = p_worker from flowdsl.executions x where x.id = t.execution)
     order by t.execution
    on conflict (execution, position) do nothing
    returning execution)
  select array_agg(execution) into won from head;
  select count(*) into heads from unnest(e_head) h where h;
  if heads < cardinality(e_head) and won is not null then
    insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body)
    select t.execution, t.position, t.epoch, t.kind, t.at, t.step, t.fingerprint, t.site, t.body
      from unnest(e_execution, e_position, e_epoch, e_head, e_kind, e_at, e_step, e_fingerprint, e_site, e_body)
        as t(execution, position, epoch, head, kind, at, step, fingerprint, site, body)
     where not t.head and t.execution = any(won);
  end if;
  if coalesce(cardinality(won), 0) = heads then
    return null;
  end if;
  return (
    select array_agg(case
        when t.execution = any(won) then 'done'
        when exists (select 1 from flowdsl.journal j where j.execution = t.execution and j.position = t.position and j.epoch = t.epoch) then 'again'
        else 'left' end order by t.n)
      from unnest(e_execution, e_position, e_epoch, e_head) with ordinality as t(execution, position, epoch, head, n)
     where t.head);
end $$;

-- The execution id that a text is, or null.
create function flowdsl.as_id(p_text text) returns uuid language sql immutable as $$
  select case when p_text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then p_text::uuid end
$$;

-- Mail to executions that are locked already: counts it on their rows, wakes those that are suspended, stores it.
-- What is sent to an execution that has ended is dropped. One mailbox number a mail, in the order of `n`.
create function flowdsl.post(m_to uuid[], m_kind text[], m_name text[], m_key text[], m_body bytea[]) returns void language sql as $$
  with counted as (
    update flowdsl.executions x
       set mail = x.mail + t.n,
           wake = case when x.status = 'suspended' then least(coalesce(x.wake, clock_timestamp()), clock_timestamp()) else x.wake end
      from (select target, count(*)::integer as n from unnest(m_to) as u(target) group by target) t
     where x.id = t.target and x.status in ('running', 'suspended', 'blocked')
    returning x.id, x.mail - t.n as base)
  insert into flowdsl.mailbox (execution, seq, kind, name, key, body)
  select c.id, c.base + row_number() over (partition by c.id order by u.n), u.kind, u.name, u.key, u.body
    from unnest(m_to, m_kind, m_name, m_key, m_body) with ordinality as u(target, kind, name, key, body, n)
    join counted c on c.id = u.target
$$;

-- The wide form: all parts of many turns, one turn an execution.
--   t_*: the turns; t_head is the first position or null; t_state is null | alive | released | suspended | blocked | succeeded | failed | cancelled
--   e_*: entries   c_*: children without a key   k_*: mail taken   x_*: scopes whose children are cancelled   a_*: audit
--   m_*: mail sent, to an execution's id, or else to a correlation key
-- Returns null when everything was done as asked, else one word a turn: done | awake (recorded, not suspended: mail came) | again | left | fenced.
create function flowdsl.commit(
  p_worker uuid,
  t_execution uuid[], t_epoch integer[], t_head integer[], t_state text[], t_wake timestamptz[], t_seen integer[], t_exit bytea[], t_cause text[],
  e_execution uuid[], e_position integer[], e_epoch integer[], e_kind smallint[], e_at timestamptz[], e_step text[], e_fingerprint text[],
  e_site text[], e_body bytea[], e_live text[],
  c_id uuid[], c_parent uuid[], c_tenant text[], c_workflow text[], c_version integer[], c_request bytea[], c_step text[], c_detached boolean[],
  k_execution uuid[], k_seq integer[],
  m_from uuid[], m_to text[], m_kind text[], m_name text[], m_body bytea[], m_delivery text[],
  x_execution uuid[], x_scope text[],
  a_execution uuid[], a_tenant text[], a_event text[], a_facts bytea[]
) returns text[] language plpgsql as $$
declare
  targets uuid[] := '{}';
  keys text[];
  orphans uuid[] := '{}';
  won uuid[];
  bare uuid[] := '{}';
  again uuid[] := '{}';
  settled uuid[] := '{}';
begin
  perform 1 from flowdsl.workers where id = p_worker and not gone for key share;
  if not found then
    return array_fill('fenced'::text, array[cardinality(t_execution)]);
  end if;
  if cardinality(m_to) > 0 then
    select array_agg(x.id order by m.n), array_agg(case when x.id is null and m.kind = 'signal' then m.target end order by m.n) into targets, keys
      from unnest(m_from, m_to, m_kind) with ordinality as m(sender, target, kind, n)
      left join flowdsl.executions s on s.id = m.sender
      left join flowdsl.executions x on x.id = flowdsl.as_id(m.target) and x.tenant = s.tenant;
    if exists (select 1 from unnest(keys) k where k is not null) then
      with alias as (
        insert into flowdsl.aliases as a (tenant, name, key)
        select distinct s.tenant, m.name, m.key from unnest(m_from, m_name, keys) as m(sender, name, key)
          join flowdsl.executions s on s.id = m.sender where m.key is not null order by 1, 2, 3
        on conflict (tenant, name, key) do update set key = excluded.key
        returning a.tenant, a.name, a.key, a.execution)
      select array_agg(coalesce(m.target, a.execution) order by m.n) into targets
        from unnest(m_from, targets, m_name, keys) with ordinality as m(sender, target, name, key, n)
        left join flowdsl.executions s on s.id = m.sender
        left join alias a on a.tenant = s.tenant and a.name = m.name and a.key = m.key;
    end if;
  end if;
  if cardinality(x_execution) > 0 then
    select coalesce(array_agg(id), '{}') into orphans
      from unnest(x_execution, x_scope) as s(execution, scope)
      join flowdsl.executions c on c.parent = s.execution and starts_with(c.parent_step, s.scope)
       and not c.detached and c.status in ('running', 'suspended', 'blocked');
  end if;
  perform 1 from flowdsl.executions where id = any(
      (select coalesce(array_agg(execution), '{}') from unnest(t_execution, t_state) as s(execution, state) where state is not null)
      || targets || orphans)
    order by id for no key update;

  with head as (
    insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
    select e.execution, e.position, e.epoch, e.kind, e.at, e.step, e.fingerprint, e.site, e.body, e.live::int4multirange
      from unnest(e_execution, e_position, e_epoch, e_kind, e_at, e_step, e_fingerprint, e_site, e_body, e_live)
        as e(execution, position, epoch, kind, at, step, fingerprint, site, body, live)
      join unnest(t_execution, t_head) as t(execution, head) on t.execution = e.execution and t.head = e.position
     where (select x.epoch = e.epoch and x.owner = p_worker from flowdsl.executions x where x.id = e.execution)
     order by e.execution
    on conflict (execution, position) do nothing
    returning execution)
  select coalesce(array_agg(execution), '{}') into won from head;

  -- Turns without entries: a suspension, a release, an end. Guarded by owner and epoch; to repeat one changes nothing.
  select coalesce(array_agg(t.execution), '{}') into bare
    from unnest(t_execution, t_epoch, t_head) as t(execution, epoch, head)
   where t.head is null and (select x.epoch = t.epoch and x.owner = p_worker from flowdsl.executions x where x.id = t.execution);
  select coalesce(array_agg(t.execution), '{}') into again
    from unnest(t_execution, t_epoch, t_head, t_state) as t(execution, epoch, head, state)
   where t.execution <> all(won || bare)
     and case when t.head is null
         then exists (select 1 from flowdsl.executions x where x.id = t.execution and x.epoch = t.epoch and x.status = t.state)
         else exists (select 1 from flowdsl.journal j where j.execution = t.execution and j.position = t.head and j.epoch = t.epoch) end;
  won := won || bare;

  insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
  select e.execution, e.position, e.epoch, e.kind, e.at, e.step, e.fingerprint, e.site, e.body, e.live::int4multirange
    from unnest(e_execution, e_position, e_epoch, e_kind, e_at, e_step, e_fingerprint, e_site, e_body, e_live)
      as e(execution, position, epoch, kind, at, step, fingerprint, site, body, live)
    join unnest(t_execution, t_head) as t(execution, head) on t.execution = e.execution
   where e.position > t.head and e.execution = any(won)
   order by e.execution, e.position;

  if cardinality(c_id) > 0 then
    insert into flowdsl.executions (id, tenant, workflow, version, request, parent, parent_step, detached, wake)
    select c.id, c.tenant, c.workflow, c.version, c.request, c.parent, c.step, c.detached, clock_timestamp()
      from unnest(c_id, c_parent, c_tenant, c_workflow, c_version, c_request, c_step, c_detached)
        as c(id, parent, tenant, workflow, version, request, step, detached)
     where c.parent = any(won)
     order by c.id
    on conflict (id) do nothing;
    orphans := orphans || array(  -- started and cancelled in one turn
      select c.id from unnest(c_id, c_parent, c_step, c_detached) as c(id, parent, step, detached)
        join unnest(x_execution, x_scope) as s(execution, scope) on c.parent = s.execution and starts_with(c.step, s.scope) and not c.detached);
  end if;
  if cardinality(k_execution) > 0 then
    delete from flowdsl.mailbox b using unnest(k_execution, k_seq) as k(execution, seq)
     where b.execution = k.execution and b.seq = k.seq and k.execution = any(won);
  end if;
  if cardinality(m_to) > 0 or cardinality(orphans) > 0 then
    if exists (select 1 from unnest(keys) k where k is not null) then  -- nobody waits for that key, or who did has ended
      insert into flowdsl.unmatched (tenant, name, key, delivery, body)
      select s.tenant, m.name, m.key, m.delivery, m.body
        from unnest(m_from, targets, m_name, keys, m_delivery, m_body) as m(sender, target, name, key, delivery, body)
        join flowdsl.executions s on s.id = m.sender
        left join flowdsl.executions x on x.id = m.target and x.status in ('running', 'suspended', 'blocked')
       where m.key is not null and x.id is null and m.sender = any(won)
      on conflict do nothing;
    end if;
    perform flowdsl.post(array_agg(target order by n), array_agg(kind order by n), array_agg(name order by n), array_agg(key order by n),
                         array_agg(body order by n))
      from (
        select m.target, m.kind, m.name, m.key, m.body, m.n
          from unnest(m_from, targets, m_kind, m_name, keys, m_body) with ordinality as m(sender, target, kind, name, key, body, n)
         where m.sender = any(won) and m.target is not null
        union all
        select c.id, 'cancel', '', null, '"cancelled by its parent"'::bytea, 1000000
          from flowdsl.executions c
         where c.id = any(orphans) and c.parent = any(won)) as out
    having count(*) > 0;
  end if;
  if cardinality(a_execution) > 0 then
    insert into flowdsl.audit (tenant, execution, event, facts)
    select a.tenant, a.execution, a.event, a.facts
      from unnest(a_execution, a_tenant, a_event, a_facts) as a(execution, tenant, event, facts)
     where a.execution = any(won);
  end if;

  with state as (
    update flowdsl.executions x
       set status = case when t.state in ('alive', 'released') then 'running' else t.state end,
           owner = case when t.state = 'alive' then x.owner end,
           wake = case t.state when 'suspended' then t.wake when 'released' then clock_timestamp() end,
           deaths = 0, exit = t.exit, cause = t.cause,
           ended = case when t.state in ('succeeded', 'failed', 'cancelled') then clock_timestamp() end
      from unnest(t_execution, t_state, t_wake, t_seen, t_exit, t_cause) as t(execution, state, wake, seen, exit, cause)
     where x.id = t.execution and t.state is not null and x.id = any(won) and (t.state <> 'suspended' or x.mail = t.seen)
    returning x.id)
  select coalesce(array_agg(id), '{}') into settled from state;

  if cardinality(won) = cardinality(t_execution)
     and cardinality(settled) = (select count(*) from unnest(t_state) s where s is not null) then
    return null;
  end if;
  return (
    select array_agg(case
        when t.execution = any(won) and (t.state is null or t.execution = any(settled)) then 'done'
        when t.execution = any(won) then 'awake'
        when t.execution = any(again) then 'again'
        else 'left' end order by t.n)
      from unnest(t_execution, t_state) with ordinality as t(execution, state, n));
end $$;

-- One entry inside a transaction of the caller's, which then commits both or neither. A taken position is an error: a twin was there.
create function flowdsl.append_own(
  p_worker uuid, p_execution uuid, p_position integer, p_epoch integer, p_kind smallint, p_at timestamptz,
  p_step text, p_fingerprint text, p_site text, p_body bytea
) returns boolean language plpgsql as $$
begin
  perform 1 from flowdsl.workers where id = p_worker and not gone for key share;
  if not found then
    return false;
  end if;
  insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body)
  select p_execution, p_position, p_epoch, p_kind, p_at, p_step, p_fingerprint, p_site, p_body
    from flowdsl.executions x where x.id = p_execution and x.epoch = p_epoch and x.owner = p_worker;
  return found;
end $$;

-- Starts, in the order of their keys. A start that is repeated finds itself by its id. Outcome: new | joined | rejected.
-- Who holds a key is locked first, in the order of ids. A holder that came later may be locked by one who waits for us: lock_not_available, and
-- the whole is to be tried again.
create function flowdsl.start(
  p_ids uuid[], p_tenants text[], p_workflows text[], p_versions integer[], p_scopes text[], p_keys text[], p_reuses text[],
  p_requests bytea[], p_parents uuid[], p_parent_steps text[], p_detached boolean[]
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
    select * from unnest(p_ids, p_tenants, p_workflows, p_versions, p_scopes, p_keys, p_reuses, p_requests, p_parents, p_parent_steps, p_detached)
      as t(id, tenant, workflow, version, scope, key, reuse, request, parent, parent_step, detached)
     order by t.tenant, t.workflow, t.scope, t.key, t.id
  loop
    loop
      insert into flowdsl.executions (id, tenant, workflow, version, scope, key, request, parent, parent_step, detached, wake)
      values (s.id, s.tenant, s.workflow, s.version, s.scope, s.key, s.request, s.parent, s.parent_step, s.detached, clock_timestamp())
      on conflict do nothing;
      if found then
        asked := s.id; id := s.id; outcome := 'new'; status := 'running';
        exit;
      end if;
      select x.id, x.status into holder from flowdsl.executions x where x.id = s.id;
      if found then
        asked := s.id; id := s.id; outcome := 'new'; status := holder.status;
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
        update flowdsl.executions x set parent = s.parent, parent_step = s.parent_step, detached = s.detached
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
create function flowdsl.begin(p_worker uuid, p_ids uuid[], p_tenants text[], p_workflows text[], p_versions integer[], p_requests bytea[])
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

-- Up to `p_limit` executions that are due, or whose owner is gone. After the second death without an entry in
-- between an execution is taken alone, so that its neighbours are not blamed for the third, which blocks it.
create function flowdsl.claim(p_worker uuid, p_limit integer, p_workflows text[], p_suspect boolean) returns table (
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
create function flowdsl.reclaim(p_worker uuid, p_ids uuid[]) returns setof flowdsl.executions language plpgsql as $$
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
create function flowdsl.take_over() returns integer language plpgsql as $$
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

-- A signal or a wish to cancel, from outside, to an execution's id or, for a signal, to a correlation key. The delivery id acts once.
-- Outcome: sent | again | ended | unmatched. What nobody waits for is kept under its key for the next who does.
create function flowdsl.send(p_tenant text, p_to text, p_kind text, p_name text, p_body bytea, p_delivery text)
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
create function flowdsl.register(p_tenant text, p_name text, p_key text, p_execution uuid) returns void language plpgsql as $$
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
