-- Schedules that a person made over the API: no deployment names them, and none that comes without them takes them for its own.

alter table flowdsl.schedules add column made boolean not null default false;
