-- What has waited longest is read first, a few at a time: without this each look sorts all that waits.

create index rereads_by_age on sync.rereads (org, adapter, entity, asked_at, owner);
