-- What lists and retention read, so that they stop at a page however much has ended. An index that every execution is in costs each a write at its
-- start and one at its end, of about 20 bytes a step if it has ten: there is one more of that kind, by tenant. The others are about the few that wait
-- or went wrong.

create index executions_listed on flowdsl.executions (tenant, started);

create index executions_waiting on flowdsl.executions (status, tenant, started)
  where owner is null and status in ('running', 'suspended', 'blocked');
create index executions_unwell on flowdsl.executions (status, tenant, started) where status in ('failed', 'cancelled');

drop index flowdsl.executions_dead;
create index executions_dead on flowdsl.executions (tenant, started) where status in ('failed', 'blocked') and discarded is null;

create index audit_listed on flowdsl.audit (tenant, at);
create index unmatched_listed on flowdsl.unmatched (tenant, seq);

create index aliases_execution on flowdsl.aliases (execution) where execution is not null;
create index deliveries_at on flowdsl.deliveries (at);
