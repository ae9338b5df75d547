-- The audit: rows are inserted with the change that they tell of, and numbered and chained within a second by one sealer per tenant.
-- (A chain head locked in each change would make all workers of a tenant commit one after another.)

-- A row for something that a person or the runtime did, in the caller's transaction: both happen or neither.
create or replace function flowdsl.audited(p_tenant text, p_execution uuid, p_event text, p_facts bytea) returns void language sql as $$
  insert into flowdsl.audit (tenant, execution, event, facts) values (p_tenant, p_execution, p_event, p_facts)
$$;

-- One field of what is hashed: its length, then its bytes; null has the length -1. So no two rows give the same bytes.
create or replace function flowdsl.audit_field(p_bytes bytea) returns bytea language sql immutable as $$
  select case when p_bytes is null then int4send(-1) else int4send(octet_length(p_bytes)) || p_bytes end
$$;

create or replace function flowdsl.audit_hash(
  p_prev bytea, p_tenant text, p_seq bigint, p_id bigint, p_at timestamptz, p_execution uuid, p_event text, p_facts bytea
) returns bytea language sql stable as $$  -- fixed microseconds in UTC: what Postgres keeps, whatever the session's settings are
  select sha256(
    flowdsl.audit_field(p_prev) || flowdsl.audit_field(convert_to(p_tenant, 'UTF8')) || flowdsl.audit_field(int8send(p_seq))
    || flowdsl.audit_field(int8send(p_id)) || flowdsl.audit_field(convert_to(to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'UTF8'))
    || flowdsl.audit_field(uuid_send(p_execution)) || flowdsl.audit_field(convert_to(p_event, 'UTF8')) || flowdsl.audit_field(p_facts))
$$;

-- What the first row of a tenant names as the one before it.
create or replace function flowdsl.audit_genesis(p_tenant text) returns bytea language sql immutable as $$
  select sha256(convert_to('flowdsl audit of ' || p_tenant, 'UTF8'))
$$;

-- Numbers and chains up to `p_limit` unsealed rows of a tenant, in the order of their ids, and gives their count; 0 also when another is at it.
-- A row that commits late is sealed late: the chain tells the order in which rows became known, each row says when it was written.
create or replace function flowdsl.seal(p_tenant text, p_limit integer) returns integer language plpgsql as $$
declare
  head record;
  one record;
  ids bigint[] := '{}';
  seqs bigint[] := '{}';
  prevs bytea[] := '{}';
  hashes bytea[] := '{}';
begin
  if not exists (select 1 from flowdsl.audit_heads h where h.tenant = p_tenant) then  -- an insert would wait for who has changed the head
    insert into flowdsl.audit_heads (tenant, seq, hash) values (p_tenant, 0, flowdsl.audit_genesis(p_tenant)) on conflict (tenant) do nothing;
  end if;
  select h.seq, h.hash into head from flowdsl.audit_heads h where h.tenant = p_tenant for update skip locked;
  if not found then
    return 0;
  end if;
  for one in
    select a.id, a.at, a.execution, a.event, a.facts from flowdsl.audit a where a.tenant = p_tenant and a.seq is null order by a.id limit p_limit
  loop
    ids := ids || one.id;
    prevs := prevs || head.hash;
    head.seq := head.seq + 1;
    head.hash := flowdsl.audit_hash(head.hash, p_tenant, head.seq, one.id, one.at, one.execution, one.event, one.facts);
    seqs := seqs || head.seq;
    hashes := hashes || head.hash;
  end loop;
  if ids = '{}' then
    return 0;
  end if;
  update flowdsl.audit a set seq = s.seq, prev = s.prev, hash = s.hash
    from unnest(ids, seqs, prevs, hashes) as s(id, seq, prev, hash) where a.id = s.id;
  update flowdsl.audit_heads set seq = head.seq, hash = head.hash, at = clock_timestamp() where tenant = p_tenant;
  return cardinality(ids);
end $$;

-- The tenants that have unsealed rows: from one to the next by the index, one look-up each, however many rows wait.
create or replace function flowdsl.unsealed() returns setof text language sql stable as $$
  with recursive whose as (
    (select a.tenant from flowdsl.audit a where a.seq is null order by a.tenant limit 1)
    union all
    select (select a.tenant from flowdsl.audit a where a.seq is null and a.tenant > w.tenant order by a.tenant limit 1) from whose w where w.tenant is not null)
  select tenant from whose where tenant is not null
$$;

create or replace function flowdsl.audit_block() returns trigger language plpgsql as $$
begin
  perform flowdsl.audited(new.tenant, new.id, 'BLOCKED', convert_to(json_build_object('cause', left(new.cause, 4096))::text, 'UTF8'));
  return null;
end $$;

create or replace function flowdsl.audit_start() returns trigger language plpgsql as $$
begin
  perform flowdsl.audited(new.tenant, new.id, 'STARTED', convert_to(json_build_object(
    'workflow', new.workflow, 'version', new.version, 'key', new.key, 'parent', new.parent, 'request_sha256', encode(sha256(new.request), 'hex'))::text, 'UTF8'));
  return null;
end $$;

create or replace function flowdsl.audit_end() returns trigger language plpgsql as $$
begin
  perform flowdsl.audited(new.tenant, new.id, 'ENDED', convert_to(json_build_object(
    'status', new.status, 'exit_sha256', encode(sha256(new.exit), 'hex'))::text, 'UTF8'));
  return null;
end $$;

-- From now on the starts and ends of these workflows are audited, and of no others; '*' means all. A row for each doubles what a short workflow
-- writes, so none is the default, and costs nothing: the triggers exist only while something asks for them, and name the workflows themselves.
create or replace function flowdsl.audit_workflows(p_workflows text[]) returns void language plpgsql as $$
declare
  which text := case when '*' = any(p_workflows) then 'true' else format('new.workflow = any(%L::text[])', p_workflows) end;
begin
  drop trigger if exists executions_start on flowdsl.executions;
  drop trigger if exists executions_end on flowdsl.executions;
  delete from flowdsl.audited_workflows where workflow <> all(p_workflows);
  insert into flowdsl.audited_workflows (workflow) select distinct w from unnest(p_workflows) w on conflict do nothing;
  if cardinality(p_workflows) > 0 then
    execute format('create trigger executions_start after insert on flowdsl.executions for each row when (%s) execute function flowdsl.audit_start()', which);
    execute format('create trigger executions_end after update of status on flowdsl.executions for each row when (%s and new.status in'
      ' (''succeeded'', ''failed'', ''cancelled'') and old.status is distinct from new.status) execute function flowdsl.audit_end()', which);
  end if;
end $$;
