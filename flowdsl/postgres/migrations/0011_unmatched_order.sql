-- Signals that nobody waits for yet, in the order in which they came: the server's clock may be set back between two of them.

alter table flowdsl.unmatched add column seq bigint generated always as identity;
