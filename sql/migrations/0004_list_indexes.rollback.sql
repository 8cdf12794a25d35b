DROP INDEX audit_events_by_time;
CREATE INDEX audit_events_by_time ON audit_events (timestamp);
CREATE INDEX tokens_by_state ON tokens (is_active, id);
DROP INDEX tokens_by_kind_and_state;
CREATE INDEX tokens_by_kind_and_state ON tokens (kind, is_active, id);
DROP INDEX tokens_by_kind;
CREATE INDEX tokens_by_kind ON tokens (kind, id);
