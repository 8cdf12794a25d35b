DROP TABLE changes;
DROP TABLE config_version;
DROP TABLE audit_events;
DROP TABLE tokens;
DROP TABLE providers;
DROP TABLE projects;
