-- The tables of the specification. Times are milliseconds since the epoch, UTC; JSON is text; ids are text.

CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    is_active BOOLEAN NOT NULL,
    rate_limit BIGINT,
    rate_limit_per_minute BIGINT,
    max_parallel BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deactivated_at BIGINT
);
CREATE INDEX projects_by_state ON projects (is_active, id);

CREATE TABLE providers (
    id TEXT PRIMARY KEY,
    project_id TEXT REFERENCES projects (id),
    name TEXT NOT NULL,
    provider_type TEXT NOT NULL,
    api_base TEXT NOT NULL,
    api_key_ciphertext TEXT NOT NULL,
    model_mapping TEXT NOT NULL,
    weight BIGINT NOT NULL CHECK (weight >= 0),
    provider_params TEXT NOT NULL,
    is_enabled BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX providers_by_project ON providers (project_id, id);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id),
    kind TEXT NOT NULL CHECK (kind IN ('token', 'master_key')),
    name TEXT NOT NULL,
    secret_hash TEXT NOT NULL UNIQUE,
    hint TEXT NOT NULL,
    previous_secret_hash TEXT,
    previous_expires_at BIGINT,
    allowed_models TEXT NOT NULL,
    metadata TEXT NOT NULL,
    rate_limit BIGINT,
    rate_limit_per_minute BIGINT,
    max_parallel BIGINT,
    max_requests BIGINT CHECK (max_requests >= 1),
    request_count BIGINT NOT NULL DEFAULT 0,
    cache_hit_count BIGINT NOT NULL DEFAULT 0,
    expires_at BIGINT,
    is_active BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deactivated_at BIGINT,
    last_used_at BIGINT
);
CREATE INDEX tokens_by_previous_secret ON tokens (previous_secret_hash);
CREATE INDEX tokens_by_project ON tokens (project_id, id);
CREATE INDEX tokens_by_kind ON tokens (kind, id);
CREATE INDEX tokens_by_state ON tokens (is_active, id);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);

CREATE TABLE audit_events (
    id TEXT PRIMARY KEY,
    timestamp BIGINT NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    project_id TEXT,
    token_id TEXT,
    request_id TEXT,
    correlation_id TEXT,
    client_ip TEXT,
    method TEXT,
    path TEXT,
    user_agent TEXT,
    outcome TEXT NOT NULL,
    reason TEXT,
    details TEXT NOT NULL
);
CREATE INDEX audit_events_by_time ON audit_events (timestamp);
CREATE INDEX audit_events_by_action ON audit_events (action, id);
CREATE INDEX audit_events_by_actor ON audit_events (actor, id);
CREATE INDEX audit_events_by_project ON audit_events (project_id, id);
CREATE INDEX audit_events_by_token ON audit_events (token_id, id);
CREATE INDEX audit_events_by_request ON audit_events (request_id, id);
CREATE INDEX audit_events_by_correlation ON audit_events (correlation_id, id);
CREATE INDEX audit_events_by_client ON audit_events (client_ip, id);
CREATE INDEX audit_events_by_method ON audit_events (method, id);
CREATE INDEX audit_events_by_path ON audit_events (path, id);
CREATE INDEX audit_events_by_outcome ON audit_events (outcome, id);

CREATE TABLE config_version (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
INSERT INTO config_version (id, version, updated_at) VALUES (1, 0, 0);

CREATE TABLE changes (
    version BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    ref TEXT NOT NULL,
    payload TEXT NOT NULL
);
CREATE INDEX changes_by_time ON changes (at);
