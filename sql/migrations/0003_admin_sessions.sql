-- Who is logged in to the admin site. Of the id, and of the management token, only hashes are kept.

CREATE TABLE admin_sessions (
    id_hash TEXT PRIMARY KEY,
    created_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    client_ip TEXT NOT NULL,
    management_hash TEXT NOT NULL
);
CREATE INDEX admin_sessions_by_expiry ON admin_sessions (expires_at);

-- The list of revoked tokens, where there are few among many.
CREATE INDEX tokens_by_kind_and_state ON tokens (kind, is_active, id);
