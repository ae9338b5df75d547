-- Keys for the service: who may do what for which tenant. Of the secret half only a digest is kept.

create table flowdsl.keys (
  id text primary key,                                  -- the public half: it stands in lists and logs
  tenant text not null,
  role text not null check (role in ('viewer', 'operator', 'admin')),
  name text not null,                                   -- for people: who uses it
  digest bytea not null check (octet_length(digest) = 32),
  made timestamptz not null default clock_timestamp(),
  expires timestamptz,
  revoked timestamptz,
  used timestamptz                                      -- to about a minute
);
create index keys_tenant on flowdsl.keys (tenant, made);
