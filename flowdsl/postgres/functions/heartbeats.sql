-- What heartbeats have told, of many attempts. Who has claimed the execution since, or ended it, is not disturbed by a late writer: a look at the
-- execution's row is enough, for to be late by the length of this statement only leaves a row that is swept.
create or replace function flowdsl.beat(b_execution uuid[], b_place text[], b_epoch integer[], b_number integer[], b_body bytea[])
returns void language sql as $$
  insert into flowdsl.heartbeats as h (execution, place, epoch, number, body)
  select b.execution, b.place, b.epoch, b.number, b.body
    from unnest(b_execution, b_place, b_epoch, b_number, b_body) as b(execution, place, epoch, number, body)
   where (select x.epoch = b.epoch and x.status in ('running', 'suspended', 'blocked') from flowdsl.executions x where x.id = b.execution)
   order by b.execution, b.place
  on conflict (execution, place) do update
     set epoch = excluded.epoch, number = excluded.number, body = excluded.body, at = clock_timestamp()
   where h.epoch <= excluded.epoch
$$;

-- What nobody needs any more: the step has been answered. A newer owner's is left alone.
create or replace function flowdsl.still(b_execution uuid[], b_place text[], b_epoch integer[]) returns void language sql as $$
  delete from flowdsl.heartbeats h
   using (select h.execution, h.place
            from unnest(b_execution, b_place, b_epoch) as b(execution, place, epoch)
            join flowdsl.heartbeats h on h.execution = b.execution and h.place = b.place and h.epoch <= b.epoch
           order by h.execution, h.place for update of h) as old
   where h.execution = old.execution and h.place = old.place
$$;

-- What a worker that died has left of executions that have ended since.
create or replace function flowdsl.sweep_heartbeats(p_limit integer) returns integer language sql as $$
  with old as (
    select h.execution, h.place from flowdsl.heartbeats h
     where h.at < clock_timestamp() - interval '1 minute'
       and not exists (select 1 from flowdsl.executions x where x.id = h.execution and x.status in ('running', 'suspended', 'blocked'))
     order by h.execution, h.place limit p_limit for update skip locked),
  gone as (delete from flowdsl.heartbeats h using old where h.execution = old.execution and h.place = old.place returning 1)
  select count(*)::integer from gone
$$;
