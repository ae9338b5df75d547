-- The commits. Each function is called as one autocommit statement under READ COMMITTED: one round trip, one commit,
-- and each statement inside has a fresh snapshot. (One statement with data-modifying CTEs has a single snapshot: after waiting for a twin
-- that then committed it would report nothing inserted and nothing seen.)
--
-- Lock order of every transaction: user rows → workers (key share) → aliases by key → executions by id → new executions by key →
-- journal by (execution, position) → deliveries by key. Claims skip what is locked.

-- The narrow form: entries, checkpoints among them, the mail that they take (k_*), and how executions end (x_*) that leave nothing else to do. Rows come sorted by (execution, position); `head` marks the
-- first of each turn; each turn has one.
-- Returns null when all turns were recorded, else one word a turn: done | again | left | fenced.
-- Not `careful`: a first position that is taken is a unique violation, nothing is recorded, and the batch is sent again with care. Hardly ever is
-- one taken, and to insert with a conflict clause costs a tenth more log.
-- (A turn of one entry, of who is alone, goes as a statement of its own: `flowdsl/postgres/columns.py`.)
drop function if exists flowdsl.append(uuid, uuid[], integer[], integer[], boolean[], smallint[], timestamptz[], text[], text[], text[], bytea[]);
drop function if exists flowdsl.append(uuid, uuid[], integer[], integer[], boolean[], smallint[], timestamptz[], text[], text[], text[], bytea[], boolean);
drop function if exists flowdsl.append(
  uuid, uuid[], integer[], integer[], boolean[], smallint[], timestamptz[], text[], text[], text[], bytea[], boolean, uuid[], text[], bytea[], text[]);
create or replace function flowdsl.append(
  p_worker uuid, e_execution uuid[], e_position integer[], e_epoch integer[], e_head boolean[], e_kind smallint[], e_at timestamptz[],
  e_step text[], e_fingerprint text[], e_site text[], e_body bytea[], p_careful boolean default true,
  x_execution uuid[] default '{}', x_state text[] default '{}', x_exit bytea[] default '{}', x_cause text[] default '{}',
  k_execution uuid[] default '{}', k_seq integer[] default '{}', e_live text[] default '{}'
) returns text[] language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
  heads integer;
  won uuid[];
begin
  perform 1 from flowdsl.workers where id = p_worker and not gone for key share;
  if not found then
    return (select array_agg('fenced'::text) from unnest(e_head) h where h);
  end if;
  if cardinality(x_execution) > 0 then
    perform 1 from flowdsl.executions where id = any(x_execution) order by id for no key update;
  end if;
  -- A conflict on the first position decides the whole turn: identity is (execution, position, epoch), never equal bytes.
  if p_careful then
    with head as (
      insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
      select t.execution, t.position, t.epoch, t.kind, t.at, t.step, t.fingerprint, t.site, t.body, t.live::int4multirange
        from unnest(e_execution, e_position, e_epoch, e_head, e_kind, e_at, e_step, e_fingerprint, e_site, e_body, e_live)
          as t(execution, position, epoch, head, kind, at, step, fingerprint, site, body, live)
       where t.head  -- a look-up for each row: as a join the planner may start from all that the worker owns, for each row anew
         and (select x.epoch = t.epoch and x.owner = p_worker from flowdsl.executions x where x.id = t.execution)
       order by t.execution
      on conflict (execution, position) do nothing
      returning execution)
    select array_agg(execution) into won from head;
  else
    with head as (
      insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
      select t.execution, t.position, t.epoch, t.kind, t.at, t.step, t.fingerprint, t.site, t.body, t.live::int4multirange
        from unnest(e_execution, e_position, e_epoch, e_head, e_kind, e_at, e_step, e_fingerprint, e_site, e_body, e_live)
          as t(execution, position, epoch, head, kind, at, step, fingerprint, site, body, live)
       where t.head
         and (select x.epoch = t.epoch and x.owner = p_worker from flowdsl.executions x where x.id = t.execution)
       order by t.execution
      returning execution)
    select array_agg(execution) into won from head;
  end if;
  select count(*) into heads from unnest(e_head) h where h;
  if heads < cardinality(e_head) and won is not null then
    insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
    select t.execution, t.position, t.epoch, t.kind, t.at, t.step, t.fingerprint, t.site, t.body, t.live::int4multirange
      from unnest(e_execution, e_position, e_epoch, e_head, e_kind, e_at, e_step, e_fingerprint, e_site, e_body, e_live)
        as t(execution, position, epoch, head, kind, at, step, fingerprint, site, body, live)
     where not t.head and t.execution = any(won);
  end if;
  if cardinality(k_execution) > 0 then
    delete from flowdsl.mailbox b using unnest(k_execution, k_seq) as k(execution, seq)
     where b.execution = k.execution and b.seq = k.seq and k.execution = any(won);
  end if;
  if cardinality(x_execution) > 0 then
    update flowdsl.executions x
       set status = t.state, owner = null, wake = null, deaths = 0, exit = t.exit, cause = t.cause, ended = clock_timestamp()
      from unnest(x_execution, x_state, x_exit, x_cause) as t(execution, state, exit, cause)
     where x.id = t.execution and x.id = any(won);
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
create or replace function flowdsl.as_id(p_text text) returns uuid language sql immutable as $$
  select case when p_text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then p_text::uuid end
$$;

-- Mail to executions that are locked already: counts it on their rows, wakes those that are suspended, stores it.
-- What is sent to an execution that has ended is dropped. One mailbox number a mail, in the order of `n`.
create or replace function flowdsl.post(m_to uuid[], m_kind text[], m_name text[], m_key text[], m_body bytea[]) returns void language sql as $$
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
drop function if exists flowdsl.commit(
  uuid, uuid[], integer[], integer[], text[], timestamptz[], integer[], bytea[], text[],
  uuid[], integer[], integer[], smallint[], timestamptz[], text[], text[], text[], bytea[], text[],
  uuid[], uuid[], text[], text[], integer[], bytea[], text[], boolean[], uuid[], integer[],
  uuid[], text[], text[], text[], bytea[], text[], uuid[], text[], uuid[], text[], text[], bytea[], boolean[]);
drop function if exists flowdsl.commit(
  uuid, uuid[], integer[], integer[], text[], timestamptz[], integer[], bytea[], text[],
  uuid[], integer[], integer[], smallint[], timestamptz[], text[], text[], text[], bytea[], text[],
  uuid[], uuid[], text[], text[], integer[], bytea[], text[], boolean[], uuid[], integer[],
  uuid[], text[], text[], text[], bytea[], text[], uuid[], text[], uuid[], text[], text[], bytea[]);
create or replace function flowdsl.commit(
  p_worker uuid,
  t_execution uuid[], t_epoch integer[], t_head integer[], t_state text[], t_wake timestamptz[], t_seen integer[], t_exit bytea[], t_cause text[],
  e_execution uuid[], e_position integer[], e_epoch integer[], e_kind smallint[], e_at timestamptz[], e_step text[], e_fingerprint text[],
  e_site text[], e_body bytea[], e_live text[],
  c_id uuid[], c_parent uuid[], c_tenant text[], c_workflow text[], c_version integer[], c_request bytea[], c_step text[], c_detached boolean[],
  k_execution uuid[], k_seq integer[],
  m_from uuid[], m_to text[], m_kind text[], m_name text[], m_body bytea[], m_delivery text[],
  x_execution uuid[], x_scope text[],
  a_execution uuid[], a_tenant text[], a_event text[], a_facts bytea[], c_terminates boolean[] default '{}',
  p_careful boolean default true
) returns text[] language plpgsql as $$
declare
  targets uuid[] := '{}';
  keys text[];
  senders text[];
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
    -- Look-ups, not joins: without fresh statistics the planner would join by tenant or status, and read what a tenant ever had.
    senders := array(
      select (select s.tenant from flowdsl.executions s where s.id = m.sender) from unnest(m_from) with ordinality as m(sender, n) order by m.n);
    select array_agg(coalesce(m.there, c.id) order by m.n),
           array_agg(case when m.there is null and c.id is null and m.kind = 'signal' then m.target end order by m.n) into targets, keys
      from (
        select u.target, u.kind, u.tenant, u.n, (select x.id from flowdsl.executions x where x.id = flowdsl.as_id(u.target) and x.tenant = u.tenant) as there
          from unnest(m_to, m_kind, senders) with ordinality as u(target, kind, tenant, n)) as m
      left join unnest(c_id, c_tenant) as c(id, tenant) on c.id = flowdsl.as_id(m.target) and c.tenant = m.tenant;  -- started in this very batch
    if exists (select 1 from unnest(keys) k where k is not null) then
      with alias as (
        insert into flowdsl.aliases as a (tenant, name, key)
        select distinct m.tenant, m.name, m.key from unnest(senders, m_name, keys) as m(tenant, name, key)
         where m.key is not null and m.tenant is not null order by 1, 2, 3
        on conflict (tenant, name, key) do update set key = excluded.key
        returning a.tenant, a.name, a.key, a.execution)
      select array_agg(coalesce(m.target, a.execution) order by m.n) into targets
        from unnest(senders, targets, m_name, keys) with ordinality as m(tenant, target, name, key, n)
        left join alias a on a.tenant = m.tenant and a.name = m.name and a.key = m.key;
    end if;
  end if;
  if cardinality(x_execution) > 0 then
    select coalesce(array_agg(c.id), '{}') into orphans
      from unnest(x_execution, x_scope) as s(execution, scope)
      cross join lateral (select e.id, e.parent_step, e.detached, e.status from flowdsl.executions e where e.parent = s.execution offset 0) as c
     where starts_with(c.parent_step, s.scope) and not c.detached and c.status in ('running', 'suspended', 'blocked');
  end if;
  perform 1 from flowdsl.executions where id = any(
      (select coalesce(array_agg(execution), '{}') from unnest(t_execution, t_state) as s(execution, state) where state is not null)
      || targets || orphans)
    order by id for no key update;

  if p_careful then
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
  else
    with head as (
      insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)
      select e.execution, e.position, e.epoch, e.kind, e.at, e.step, e.fingerprint, e.site, e.body, e.live::int4multirange
        from unnest(e_execution, e_position, e_epoch, e_kind, e_at, e_step, e_fingerprint, e_site, e_body, e_live)
          as e(execution, position, epoch, kind, at, step, fingerprint, site, body, live)
        join unnest(t_execution, t_head) as t(execution, head) on t.execution = e.execution and t.head = e.position
       where (select x.epoch = e.epoch and x.owner = p_worker from flowdsl.executions x where x.id = e.execution)
       order by e.execution
      returning execution)
    select coalesce(array_agg(execution), '{}') into won from head;
  end if;

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
    insert into flowdsl.executions (id, tenant, workflow, version, request, parent, parent_step, detached, terminates, wake)
    select c.id, c.tenant, c.workflow, c.version, c.request, c.parent, c.step, c.detached, coalesce(c.terminates, false), clock_timestamp()
      from unnest(c_id, c_parent, c_tenant, c_workflow, c_version, c_request, c_step, c_detached, c_terminates)
        as c(id, parent, tenant, workflow, version, request, step, detached, terminates)
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
      select m.tenant, m.name, m.key, m.delivery, m.body
        from unnest(m_from, senders, targets, m_name, keys, m_delivery, m_body) with ordinality
          as m(sender, tenant, target, name, key, delivery, body, n)
       where m.key is not null and m.sender = any(won)
         and (select x.status in ('running', 'suspended', 'blocked') from flowdsl.executions x where x.id = m.target) is not true
       order by m.n
      on conflict do nothing;
    end if;
    perform flowdsl.post(array_agg(target order by n), array_agg(kind order by n), array_agg(name order by n), array_agg(key order by n),
                         array_agg(body order by n))
      from (
        select m.target, m.kind, m.name, m.key, m.body, m.n
          from unnest(m_from, targets, m_kind, m_name, keys, m_body) with ordinality as m(sender, target, kind, name, key, body, n)
         where m.sender = any(won) and m.target is not null
        union all
        select c.id, case when c.terminates then 'terminate' else 'cancel' end, '', null, '"cancelled by its parent"'::bytea, 1000000
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
create or replace function flowdsl.append_own(
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
