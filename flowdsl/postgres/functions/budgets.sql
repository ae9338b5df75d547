-- Budgets. A worker asks for all attempts that wait in it at once, over one connection, one call after the other; the answer says which may begin.
-- Locks: the worker's own row (key share), then budgets in the order of (kind, name, scope). Nothing is held while an activity runs.

-- The arithmetic of a rate, in whole numbers: flowdsl/budget.py has the same in Python.
create or replace function flowdsl.left_of(p_debt numeric, p_elapsed numeric, p_ceiling integer) returns numeric language sql immutable as $$
  select greatest(0, p_debt - greatest(0, p_elapsed) * p_ceiling)
$$;
create or replace function flowdsl.room(p_debt numeric, p_ceiling integer, p_per bigint, p_burst integer) returns integer language sql immutable as $$
  select case when p_ceiling = 0 then 0 else greatest(0, div(p_burst::numeric * p_per - p_debt, p_per))::integer end
$$;
-- Microseconds until the next call may begin; null when no time will do.
create or replace function flowdsl.pause(p_debt numeric, p_ceiling integer, p_per bigint, p_burst integer) returns numeric language sql immutable as $$
  select case when p_ceiling > 0 then div(greatest(0, p_debt - (p_burst - 1)::numeric * p_per) + p_ceiling - 1, p_ceiling) end
$$;

create or replace function flowdsl.microseconds(p_span interval) returns numeric language sql immutable as $$
  select extract(epoch from p_span) * 1000000
$$;

-- How much of `p_free` is for this worker: all who wait in some worker are dealt to in turn, those with the fewest first. Turns last a second,
-- so that what one worker gives back is not idle until another has come for it.
create or replace function flowdsl.dealt(
  p_kind text, p_name text, p_scope text, p_worker uuid, p_wanted integer, p_free integer, p_now timestamptz
) returns integer language sql stable as $$
  with demanding as (
    select d.worker, d.wanted, d.served from flowdsl.demands d
     where d.kind = p_kind and d.name = p_name and d.scope = p_scope and d.worker <> p_worker and d.wanted > 0 and d.until > p_now
    union all
    select p_worker, p_wanted, coalesce((select d.served from flowdsl.demands d
       where d.kind = p_kind and d.name = p_name and d.scope = p_scope and d.worker = p_worker), '-infinity')),
  held as (select s.worker, count(*) as n from flowdsl.slots s where p_kind = 'slots' and s.name = p_name and s.scope = p_scope group by s.worker)
  select count(*) filter (where worker = p_worker)::integer from (
    select d.worker from demanding d left join held h on h.worker = d.worker cross join generate_series(1, least(d.wanted, p_free)) as turn
     order by coalesce(h.n, 0) + turn, date_trunc('second', d.served), d.worker <> p_worker, d.worker
     limit p_free) as turns
$$;

-- Draws for the attempts that wait in a worker, after it has given back some tickets.
--   b_*: the budgets at issue, as this worker declares them, and how many of its attempts wait for each
--   a_ticket, a_budget: which attempt is under which budget (its place in b_*), in the order of the attempts
-- An attempt may begin if all of its budgets allow it. `b_left`: how many more might; `b_pause`: seconds until it is worth asking again, or null.
-- To repeat a call grants again what has its slots already. No row: this worker is gone.
create or replace function flowdsl.draw(
  p_worker uuid, p_back bigint[],
  b_kind text[], b_name text[], b_scope text[], b_ceiling integer[], b_per bigint[], b_burst integer[], b_wanted integer[],
  a_ticket bigint[], a_budget integer[]
) returns table (granted bigint[], b_left integer[], b_pause float8[]) language plpgsql as $$
declare
  began timestamptz;
  b record;
  q record;
  now_ timestamptz;
  free integer[] := array_fill(0, array[cardinality(b_kind)]);
  spent integer[] := array_fill(0, array[cardinality(b_kind)]);
  owed numeric[] := array_fill(0::numeric, array[cardinality(b_kind)]);
  resting timestamptz[] := array_fill(null::timestamptz, array[cardinality(b_kind)]);
  seen timestamptz[] := array_fill(null::timestamptz, array[cardinality(b_kind)]);
  stale boolean[] := array_fill(false, array[cardinality(b_kind)]);
  others boolean[] := array_fill(false, array[cardinality(b_kind)]);
  held bigint[] := '{}';
  one integer;
begin
  perform set_config('synchronous_commit', 'off', true);  -- a crash of the server itself may forget the last moments' draws
  select w.started into began from flowdsl.workers w where w.id = p_worker and not w.gone for key share;
  if not found then
    return;
  end if;
  if cardinality(p_back) > 0 then
    delete from flowdsl.slots s where s.worker = p_worker and s.ticket = any(p_back);
  end if;
  granted := '{}';
  b_left := '{}';
  b_pause := '{}';
  if cardinality(b_kind) = 0 then
    return next;
    return;
  end if;

  insert into flowdsl.budgets (kind, name, scope, ceiling, per, burst, declared)
  select t.kind, t.name, t.scope, t.ceiling, t.per, t.burst, began
    from unnest(b_kind, b_name, b_scope, b_ceiling, b_per, b_burst) as t(kind, name, scope, ceiling, per, burst)
   order by t.kind, t.name, t.scope
  on conflict (kind, name, scope) do nothing;
  for b in
    select x.*, t.n, t.ceiling as my_ceiling, t.per as my_per, t.burst as my_burst, t.wanted
      from unnest(b_kind, b_name, b_scope, b_ceiling, b_per, b_burst, b_wanted) with ordinality
        as t(kind, name, scope, ceiling, per, burst, wanted, n)
      join flowdsl.budgets x on x.kind = t.kind and x.name = t.name and x.scope = t.scope
     order by x.kind, x.name, x.scope for update of x
  loop
    now_ := clock_timestamp();  -- read under the lock: draws follow each other in time
    b.debt := flowdsl.left_of(b.debt, flowdsl.microseconds(now_ - b.at), b.ceiling);
    if began >= b.declared and (b.ceiling, b.per, b.burst) is distinct from (b.my_ceiling, b.my_per, b.my_burst) then
      b.debt := div(b.debt * b.my_per + b.per - 1, b.per);
      b.ceiling := b.my_ceiling;
      b.per := b.my_per;
      b.burst := b.my_burst;
      update flowdsl.budgets x set ceiling = b.ceiling, per = b.per, burst = b.burst, debt = coalesce(b.debt, 0), at = now_, declared = began
       where x.kind = b.kind and x.name = b.name and x.scope = b.scope;
    end if;
    seen[b.n] := now_;
    stale[b.n] := b.at > now_;
    if b.kind = 'rate' then
      owed[b.n] := b.debt;
      resting[b.n] := b.rests_until;
      free[b.n] := case when b.rests_until > now_ then 0 else flowdsl.room(b.debt, b.ceiling, b.per, b.burst) end;
    else
      delete from flowdsl.slots s where s.name = b.name and s.scope = b.scope
         and not exists (select 1 from flowdsl.workers w where w.id = s.worker and not w.gone);
      free[b.n] := greatest(0, b.ceiling - (select count(*)::integer from flowdsl.slots s where s.name = b.name and s.scope = b.scope));
    end if;
    others[b.n] := exists (select 1 from flowdsl.demands d where d.kind = b.kind and d.name = b.name and d.scope = b.scope
                              and d.worker <> p_worker and d.wanted > 0 and d.until > now_);
    if others[b.n] and free[b.n] > 0 then
      free[b.n] := flowdsl.dealt(b.kind, b.name, b.scope, p_worker, b.wanted, free[b.n], now_);
    end if;
    b_wanted[b.n] := b.wanted;
    b_ceiling[b.n] := b.ceiling;
    b_per[b.n] := b.per;
    b_burst[b.n] := b.burst;
  end loop;

  held := array(select distinct s.ticket from flowdsl.slots s where s.worker = p_worker and s.ticket = any(a_ticket));
  for q in
    select t.ticket, array_agg(t.budget) as budgets from unnest(a_ticket, a_budget) with ordinality as t(ticket, budget, n)
     group by t.ticket order by min(t.n)
  loop
    if q.ticket = any(held) then
      granted := granted || q.ticket;  -- a repeat: its draw was made
    elsif not exists (select 1 from unnest(q.budgets) as u(n) where free[u.n] <= 0) then
      granted := granted || q.ticket;
      foreach one in array q.budgets loop
        free[one] := free[one] - 1;
        spent[one] := spent[one] + 1;
      end loop;
    end if;
  end loop;

  insert into flowdsl.slots (worker, ticket, name, scope)
  select p_worker, t.ticket, b_name[t.budget], b_scope[t.budget] from unnest(a_ticket, a_budget) as t(ticket, budget)
   where b_kind[t.budget] = 'slots' and t.ticket = any(granted) and t.ticket <> all(held);
  for one in 1 .. cardinality(b_kind) loop
    b_left[one] := free[one];
    b_pause[one] := null;
    continue when seen[one] is null;  -- tidied away between two statements: the next draw makes it anew
    if b_kind[one] = 'rate' then
      owed[one] := owed[one] + spent[one]::numeric * b_per[one];
      if spent[one] > 0 or stale[one] then
        update flowdsl.budgets x set debt = owed[one], at = seen[one]
         where x.kind = b_kind[one] and x.name = b_name[one] and x.scope = b_scope[one];
      end if;
      b_pause[one] := greatest(flowdsl.pause(owed[one], b_ceiling[one], b_per[one], b_burst[one]) / 1000000,
                               case when resting[one] > seen[one] then extract(epoch from resting[one] - seen[one]) end);
    end if;
    if b_wanted[one] > spent[one] or others[one]
       or exists (select 1 from flowdsl.demands d where d.kind = b_kind[one] and d.name = b_name[one] and d.scope = b_scope[one] and d.worker = p_worker) then
      insert into flowdsl.demands as d (kind, name, scope, worker, wanted, until, served)
      values (b_kind[one], b_name[one], b_scope[one], p_worker, greatest(0, b_wanted[one] - spent[one]),
              seen[one] + make_interval(secs => least(coalesce(b_pause[one], 0), 60) + 2), case when spent[one] > 0 then seen[one] else '-infinity' end)
      on conflict (kind, name, scope, worker) do update
        set wanted = excluded.wanted, until = excluded.until, served = greatest(d.served, excluded.served);
    end if;
  end loop;
  return next;
end $$;

-- The other side has said that it wants to be left alone: nobody draws from these rates for so long.
create or replace function flowdsl.rest(p_names text[], p_scopes text[], p_seconds float8[]) returns void language plpgsql as $$
begin
  perform 1 from flowdsl.budgets b join unnest(p_names, p_scopes) as t(name, scope) on t.name = b.name and t.scope = b.scope
    where b.kind = 'rate' order by b.kind, b.name, b.scope for update of b;
  update flowdsl.budgets b set rests_until = greatest(b.rests_until, clock_timestamp() + make_interval(secs => t.seconds))
    from (select name, scope, max(seconds) as seconds from unnest(p_names, p_scopes, p_seconds) as u(name, scope, seconds) group by name, scope) t
   where b.kind = 'rate' and b.name = t.name and b.scope = t.scope;
end $$;

-- Forgets what has not been used for a day and is as if new, and the demands and slots of workers that are no more.
create or replace function flowdsl.tidy_budgets() returns void language plpgsql as $$
begin
  delete from flowdsl.demands d where d.ctid = any(array(select x.ctid from flowdsl.demands x
    where not exists (select 1 from flowdsl.workers w where w.id = x.worker and not w.gone) for update skip locked));
  delete from flowdsl.slots s where s.ctid = any(array(select x.ctid from flowdsl.slots x
    where not exists (select 1 from flowdsl.workers w where w.id = x.worker and not w.gone) for update skip locked));
  delete from flowdsl.budgets b where (b.kind, b.name, b.scope) in (
    select x.kind, x.name, x.scope from flowdsl.budgets x
     where x.at < clock_timestamp() - interval '1 day' and x.rests_until < clock_timestamp()
       and (x.kind = 'slots' or flowdsl.left_of(x.debt, flowdsl.microseconds(clock_timestamp() - x.at), x.ceiling) = 0)
       and not exists (select 1 from flowdsl.slots s where x.kind = 'slots' and s.name = x.name and s.scope = x.scope)
       and not exists (select 1 from flowdsl.demands d where d.kind = x.kind and d.name = x.name and d.scope = x.scope)
     order by x.kind, x.name, x.scope for update skip locked limit 1000);
end $$;
