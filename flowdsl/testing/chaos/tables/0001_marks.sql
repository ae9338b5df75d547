-- Written by transactional activities. No key forbids a second row of one step: that there is none is what is to be shown.
create table chaos_marks (
  key text not null,
  label text not null,
  attempt integer not null,
  at timestamptz not null default clock_timestamp()
);
