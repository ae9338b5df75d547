-- Tenants apart: row-level security behind the conditions that every statement for a tenant carries. A request of the service runs, for the length
-- of a transaction, as the role flowdsl_tenant with the tenant in a setting; then a table has only that tenant's rows, whatever the statement forgot.
-- Workers and operators run as who they are, and the tables' owner is not even asked: it costs them nothing.

-- The tables of which each row is a tenant's: by a column of its own, or by the execution or schedule that it belongs to. `guard` is what must be
-- true of a row. A table that is new is found by its columns; one that holds tenants' rows and has none of these has to be named here.
create or replace function flowdsl.tenant_tables() returns table (name text, guard text, guarded boolean) language sql stable as $$
  with columns as (
    select c.oid, c.relname::text as name, c.relrowsecurity as secured, array_agg(a.attname::text) as has
      from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     where c.relnamespace = 'flowdsl'::regnamespace and c.relkind in ('r', 'p') group by c.oid, c.relname, c.relrowsecurity),
  rules as (
    select oid, name, secured, case
        when 'tenant' = any(has) then 'tenant = current_setting(''flowdsl.tenant'', true)'
        when name = 'deliveries' then 'starts_with(scope, current_setting(''flowdsl.tenant'', true) || ''/'')'
        when 'schedule' = any(has) then 'flowdsl.own_schedule(schedule)'
        when 'execution' = any(has) then 'flowdsl.own_execution(execution)'
      end as rule from columns)
  select name, format('current_user <> ''flowdsl_tenant'' or %s', rule),
         secured and exists (select 1 from pg_policy p where p.polrelid = rules.oid and p.polname = 'tenants_apart')
    from rules where rule is not null order by name
$$;

-- Whether the caller sees that execution or schedule. (No subquery in the policy: a planner may take it for worth reading all of them.)
create or replace function flowdsl.own_execution(p_id uuid) returns boolean language plpgsql stable cost 5 as $$
begin
  return exists (select 1 from flowdsl.executions x where x.id = p_id);
end $$;

create or replace function flowdsl.own_schedule(p_id text) returns boolean language plpgsql stable cost 5 as $$
begin
  return exists (select 1 from flowdsl.schedules s where s.id = p_id);
end $$;

-- Gives one table its policy. One table a transaction: that waits for who works on this table, and holds no other meanwhile.
create or replace function flowdsl.guard(p_table text) returns void language plpgsql as $$
declare
  found_guard text := (select t.guard from flowdsl.tenant_tables() t where t.name = p_table);
begin
  if found_guard is null then
    raise exception 'flowdsl.% holds no rows of tenants', p_table using errcode = 'undefined_table';
  end if;
  perform set_config('lock_timeout', '3s', true);  -- all who work on the table wait behind us
  execute format('alter table flowdsl.%I enable row level security', p_table);
  execute format('drop policy if exists tenants_apart on flowdsl.%I', p_table);
  execute format('create policy tenants_apart on flowdsl.%I using (%s)', p_table, found_guard);
end $$;

-- Makes the role, lets the caller take it on, and gives it its rights; to repeat it changes nothing. What the caller may not do is left: see
-- flowdsl.not_apart(). Several databases of a server share the role: it has rights in each, and no way to log in.
create or replace function flowdsl.make_tenant_role() returns void language plpgsql as $$
declare
  one record;
begin
  if not exists (select 1 from pg_roles where rolname = 'flowdsl_tenant') then
    begin
      create role flowdsl_tenant nologin noinherit;
    exception
      when insufficient_privilege then return;
      when duplicate_object or unique_violation then null;  -- another database's migration was first
    end;
  end if;
  begin
    if not flowdsl.may_take_role('flowdsl_tenant') then
      grant flowdsl_tenant to current_user;
    end if;
  exception
    when insufficient_privilege or unique_violation or internal_error then null;  -- the last: another grants it at the same time
  end;
  grant usage on schema flowdsl to flowdsl_tenant;
  for one in select t.name from flowdsl.tenant_tables() t loop
    execute format('grant select on flowdsl.%I to flowdsl_tenant', one.name);
    if one.name not in ('audit', 'audit_heads') then
      execute format('grant insert, update, delete on flowdsl.%I to flowdsl_tenant', one.name);
    end if;
  end loop;
  grant insert on flowdsl.audit to flowdsl_tenant;
end $$;

-- To be a member was enough before PostgreSQL 16.
create or replace function flowdsl.may_take_role(p_role text) returns boolean language plpgsql stable as $$
begin
  return pg_has_role(current_user, p_role, case when current_setting('server_version_num')::integer < 160000 then 'member' else 'set' end);
end $$;

-- Why tenants are not kept apart by the server for this user, with what to do; null when they are.
create or replace function flowdsl.not_apart() returns text language plpgsql stable as $$
declare
  role record;
  open_tables text := (select string_agg(t.name, ', ') from flowdsl.tenant_tables() t where not t.guarded);
begin
  select r.oid, r.rolsuper or r.rolbypassrls as bypasses into role from pg_roles r where r.rolname = 'flowdsl_tenant';
  if role.oid is null then
    return format('there is no role flowdsl_tenant, and %I may not make it: as a superuser, create role flowdsl_tenant nologin noinherit; '
      'grant flowdsl_tenant to %I; then flowdsl migrate', current_user, current_user);
  elsif role.bypasses then
    return 'the role flowdsl_tenant is above row-level security: alter role flowdsl_tenant nosuperuser nobypassrls';
  elsif not flowdsl.may_take_role('flowdsl_tenant') then
    return format('%I may not act as flowdsl_tenant: as a superuser, grant flowdsl_tenant to %I', current_user, current_user);
  elsif open_tables is not null then
    return format('no policy yet on %s: flowdsl migrate, as the owner of the schema flowdsl', open_tables);
  elsif exists (select 1 from pg_class c where c.relnamespace = 'flowdsl'::regnamespace and c.relowner = role.oid and c.relkind = 'r') then
    return 'flowdsl_tenant owns a table, whose policy it passes: give it back to the owner of the schema flowdsl';
  elsif not has_schema_privilege(role.oid, 'flowdsl', 'usage')
        or exists (select 1 from flowdsl.tenant_tables() t where not has_table_privilege(role.oid, format('flowdsl.%I', t.name), 'select')) then
    return 'flowdsl_tenant lacks rights in the schema flowdsl: flowdsl migrate, as its owner';
  end if;
  return null;
end $$;
