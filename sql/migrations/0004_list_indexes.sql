-- What the lists of tokens are filtered by stands in the indexes that give their order, so that a filter or search that finds
-- nothing among many reads no rows. The counter does not: it changes with every call.

DROP INDEX tokens_by_kind;
CREATE INDEX tokens_by_kind ON tokens (kind, id, name);
DROP INDEX tokens_by_kind_and_state;
CREATE INDEX tokens_by_kind_and_state ON tokens (kind, is_active, id, expires_at, max_requests);
-- Every list names the kind.
DROP INDEX tokens_by_state;

-- Where a span of time begins and ends among the ids, by which pages go.
DROP INDEX audit_events_by_time;
CREATE INDEX audit_events_by_time ON audit_events (timestamp, id);
