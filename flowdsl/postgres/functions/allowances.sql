-- What tenants may ask of the service. All that gathered in a process is asked for at once; a wish is granted in full or in part, never more.
--   p_names, p_tenants: whose allowance of what, each pair once · p_wanted: how many · p_ceilings a minute, and p_bursts at once
-- Of each: how many are granted, and the seconds until one more is, or null when some are left. Locks: the rows in the order of (kind, name, scope).
create or replace function flowdsl.allow(p_names text[], p_tenants text[], p_wanted integer[], p_ceilings integer[], p_bursts integer[])
returns table (granted integer[], pauses float8[]) language plpgsql as $$
declare
  one record;
  now_ timestamptz;
  owed numeric;
  given integer;
  minute constant bigint := 60000000;
begin
  perform set_config('synchronous_commit', 'off', true);  -- a crash of the server itself may forget the last moments' requests
  granted := array_fill(0, array[cardinality(p_names)]);
  pauses := array_fill(null::float8, array[cardinality(p_names)]);
  insert into flowdsl.budgets (kind, name, scope, ceiling, per, burst, declared)
  select 'allowance', t.name, t.tenant, t.ceiling, minute, t.burst, clock_timestamp()
    from unnest(p_names, p_tenants, p_ceilings, p_bursts) as t(name, tenant, ceiling, burst) order by t.name, t.tenant
  on conflict (kind, name, scope) do nothing;
  for one in
    select b.*, t.n, t.wanted, t.ceiling as my_ceiling, t.burst as my_burst
      from unnest(p_names, p_tenants, p_wanted, p_ceilings, p_bursts) with ordinality as t(name, tenant, wanted, ceiling, burst, n)
      join flowdsl.budgets b on b.kind = 'allowance' and b.name = t.name and b.scope = t.tenant
     order by b.kind, b.name, b.scope for update of b
  loop
    now_ := clock_timestamp();  -- read under the lock: what is granted follows in time
    owed := flowdsl.left_of(one.debt, flowdsl.microseconds(now_ - one.at), one.my_ceiling);
    given := least(one.wanted, flowdsl.room(owed, one.my_ceiling, minute, one.my_burst));
    owed := owed + given::numeric * minute;
    update flowdsl.budgets b set debt = owed, at = now_, ceiling = one.my_ceiling, burst = one.my_burst
     where b.kind = 'allowance' and b.name = one.name and b.scope = one.scope;
    granted[one.n] := given;
    if flowdsl.room(owed, one.my_ceiling, minute, one.my_burst) < 1 then
      pauses[one.n] := flowdsl.pause(owed, one.my_ceiling, minute, one.my_burst) / 1000000;
    end if;
  end loop;
  return next;
end $$;
