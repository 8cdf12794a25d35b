DROP INDEX tokens_by_kind_and_state;
DROP TABLE admin_sessions;
