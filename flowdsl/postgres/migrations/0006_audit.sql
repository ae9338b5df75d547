-- The audit as a chain a tenant: each row names the hash of the one before it. A row is inserted unsealed, and sealed once.

alter table flowdsl.audit add column prev bytea;
alter table flowdsl.audit add constraint audit_sealed check ((seq is null) = (hash is null) and (seq is null) = (prev is null) and seq > 0);
create unique index audit_seq on flowdsl.audit (tenant, seq);    -- no number twice,
create unique index audit_prev on flowdsl.audit (tenant, prev);  -- and no two rows after one: a fork cannot be stored
create index audit_unsealed on flowdsl.audit (tenant, id) where seq is null;
create index audit_execution on flowdsl.audit (execution) where execution is not null;

create table flowdsl.audit_heads (                      -- locked by who seals
  tenant text primary key,
  seq bigint not null,
  hash bytea not null,
  at timestamptz not null default clock_timestamp()
);

create table flowdsl.audited_workflows (                -- whose starts and ends are audited too; '*' is all of them
  workflow text primary key,
  since timestamptz not null default clock_timestamp()
);

-- What was written stays. This stops mistakes, and a role without the right to alter the table; who owns the table can switch it off, and is
-- found out by the chain and its anchors.
create function flowdsl.audit_stays() returns trigger language plpgsql as $$
begin
  raise exception 'rows of flowdsl.audit are never changed or deleted' using errcode = 'restrict_violation',
    hint = 'See docs/how-to/audit.md: what was written in error is corrected by another row.';
end $$;
create trigger audit_update before update on flowdsl.audit for each row
  when (not (old.seq is null and new.seq is not null and (old.id, old.tenant, old.event, old.facts, old.at) = (new.id, new.tenant, new.event, new.facts, new.at)
             and old.execution is not distinct from new.execution))
  execute function flowdsl.audit_stays();
create trigger audit_delete before delete on flowdsl.audit for each row execute function flowdsl.audit_stays();
create trigger audit_truncate before truncate on flowdsl.audit for each statement execute function flowdsl.audit_stays();

-- Blocks are audited wherever they come from. The body is in functions/audit.sql.
create function flowdsl.audit_block() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger executions_block after update of status on flowdsl.executions for each row
  when (new.status = 'blocked' and old.status <> 'blocked') execute function flowdsl.audit_block();
