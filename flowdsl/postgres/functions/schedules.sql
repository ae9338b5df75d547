-- Lock order: the schedule's row comes before everything else, and only ever by who skips what is locked, or takes rows in the order of ids.
-- So nobody who holds an execution waits for a schedule.

-- Whether the last execution of a schedule is open. It is read, not locked: that it ends a moment later is no reason to have started.
create or replace function flowdsl.in_the_way(p_schedule text) returns uuid language sql stable as $$
  select x.id from flowdsl.schedules s join flowdsl.executions x on x.id = s.last_execution
   where s.id = p_schedule and x.status in ('running', 'suspended', 'blocked')
$$;

-- Instants of schedules whose rows the caller has locked, in the order given: each is started, queued or skipped, once.
-- p_requests: of each the input as its execution keeps it, where that is not the schedule's own (encrypted, it is bound to where it is).
-- p_cause: due, triggered, backfilled (which lets executions overlap), or queued: one that waited until now.
-- Outcome: started | queued | skipped | again (it was decided on before). `execution` is the one started, or the one in the way.
drop function if exists flowdsl.fire(text, text[], timestamptz[], text[], uuid[]);
create or replace function flowdsl.fire(
  p_cause text, p_schedules text[], p_instants timestamptz[], p_keys text[], p_executions uuid[], p_requests bytea[] default '{}'
) returns table (schedule text, instant timestamptz, outcome text, execution uuid) language plpgsql as $$
#variable_conflict use_column
declare
  f record;
  s flowdsl.schedules;
  known flowdsl.firings;
  rival uuid;
begin
  for f in
    select * from unnest(p_schedules, p_instants, p_keys, p_executions, p_requests) with ordinality
      as t(schedule, instant, key, execution, request, place) order by t.place
  loop
    select * into s from flowdsl.schedules x where x.id = f.schedule;
    select * into known from flowdsl.firings x where x.schedule = f.schedule and x.instant = f.instant;
    schedule := f.schedule; instant := f.instant; execution := known.execution;
    if known.outcome = 'started' or (known.outcome = 'queued') <> (p_cause = 'queued') or (known.outcome is not null and p_cause = 'due') then
      outcome := 'again';
      if p_cause = 'queued' then
        update flowdsl.schedules x set queued = null where x.id = f.schedule;
      end if;
      return next;
      continue;
    end if;
    rival := case when s.overlap <> 'allow' and p_cause <> 'backfilled' then flowdsl.in_the_way(f.schedule) end;
    if rival is null then
      outcome := 'started';
      execution := (select t.id from flowdsl.start(array[f.execution], array[s.tenant], array[s.workflow], array[s.version], array[''], array[f.key],
                                                   array['join'], array[coalesce(f.request, s.request)], array[null::uuid], array[''], array[false]) t);
    else
      outcome := case when p_cause = 'queued' or (s.overlap = 'queue' and s.queued is null) then 'queued' else 'skipped' end;
      execution := rival;
    end if;
    insert into flowdsl.firings as x (schedule, instant, outcome, cause, execution)
      values (f.schedule, f.instant, outcome, case when p_cause = 'queued' then 'due' else p_cause end, execution)
      on conflict (schedule, instant) do update set outcome = excluded.outcome, execution = excluded.execution, at = excluded.at,
        cause = case when p_cause = 'queued' then x.cause else excluded.cause end;
    update flowdsl.schedules x
       set queued = case when outcome = 'queued' then f.instant when p_cause = 'queued' then null else x.queued end,
           last = case when outcome = 'started' and p_cause <> 'backfilled' then f.instant else x.last end,
           last_at = case when outcome = 'started' and p_cause <> 'backfilled' then clock_timestamp() else x.last_at end,
           last_execution = case when outcome = 'started' and p_cause <> 'backfilled' then execution else x.last_execution end
     where x.id = f.schedule;
    return next;
  end loop;
end $$;

-- Where schedules go on, in the transaction of what they started. Instants that were let go leave one row, at the first of them. Of the
-- history a month is kept: the key of an execution tells of an older one.
create or replace function flowdsl.go_on(p_schedules text[], p_upcoming timestamptz[], p_due timestamptz[], p_missed timestamptz[])
returns void language plpgsql as $$
begin
  insert into flowdsl.firings (schedule, instant, outcome, cause)
    select t.schedule, t.missed, 'missed', 'due' from unnest(p_schedules, p_missed) as t(schedule, missed) where t.missed is not null
    on conflict do nothing;
  update flowdsl.schedules s set upcoming = t.upcoming, due = t.due, problem = null
    from unnest(p_schedules, p_upcoming, p_due) as t(schedule, upcoming, due) where s.id = t.schedule;
  delete from flowdsl.firings x using unnest(p_schedules) as t(schedule)
   where x.schedule = t.schedule and x.instant < clock_timestamp() - interval '30 days' and x.at < clock_timestamp() - interval '30 days';
end $$;
