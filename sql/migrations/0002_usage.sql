-- The history of usage: what the calls that ended within one minute, and within one hour, amount to; every call is in both tables, and
-- what asks for long times reads hours. '' stands for none. The columns ms_N count calls by how long they took: at most N
-- milliseconds, and more than the column before; ms_more counts the rest.

CREATE TABLE usage_minutes (
    began BIGINT NOT NULL,
    project_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    cache_hits INTEGER NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    overhead_us BIGINT NOT NULL,
    ms_1 INTEGER NOT NULL,
    ms_2 INTEGER NOT NULL,
    ms_5 INTEGER NOT NULL,
    ms_10 INTEGER NOT NULL,
    ms_20 INTEGER NOT NULL,
    ms_50 INTEGER NOT NULL,
    ms_100 INTEGER NOT NULL,
    ms_200 INTEGER NOT NULL,
    ms_300 INTEGER NOT NULL,
    ms_500 INTEGER NOT NULL,
    ms_700 INTEGER NOT NULL,
    ms_1000 INTEGER NOT NULL,
    ms_1500 INTEGER NOT NULL,
    ms_2000 INTEGER NOT NULL,
    ms_3000 INTEGER NOT NULL,
    ms_5000 INTEGER NOT NULL,
    ms_7000 INTEGER NOT NULL,
    ms_10000 INTEGER NOT NULL,
    ms_15000 INTEGER NOT NULL,
    ms_20000 INTEGER NOT NULL,
    ms_30000 INTEGER NOT NULL,
    ms_60000 INTEGER NOT NULL,
    ms_120000 INTEGER NOT NULL,
    ms_more INTEGER NOT NULL,
    PRIMARY KEY (began, project_id, provider, model)
);
CREATE INDEX usage_minutes_by_project ON usage_minutes (project_id, began);
CREATE INDEX usage_minutes_by_provider ON usage_minutes (provider, began);
CREATE INDEX usage_minutes_by_model ON usage_minutes (model, began);

CREATE TABLE usage_hours (
    began BIGINT NOT NULL,
    project_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    cache_hits INTEGER NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    overhead_us BIGINT NOT NULL,
    ms_1 INTEGER NOT NULL,
    ms_2 INTEGER NOT NULL,
    ms_5 INTEGER NOT NULL,
    ms_10 INTEGER NOT NULL,
    ms_20 INTEGER NOT NULL,
    ms_50 INTEGER NOT NULL,
    ms_100 INTEGER NOT NULL,
    ms_200 INTEGER NOT NULL,
    ms_300 INTEGER NOT NULL,
    ms_500 INTEGER NOT NULL,
    ms_700 INTEGER NOT NULL,
    ms_1000 INTEGER NOT NULL,
    ms_1500 INTEGER NOT NULL,
    ms_2000 INTEGER NOT NULL,
    ms_3000 INTEGER NOT NULL,
    ms_5000 INTEGER NOT NULL,
    ms_7000 INTEGER NOT NULL,
    ms_10000 INTEGER NOT NULL,
    ms_15000 INTEGER NOT NULL,
    ms_20000 INTEGER NOT NULL,
    ms_30000 INTEGER NOT NULL,
    ms_60000 INTEGER NOT NULL,
    ms_120000 INTEGER NOT NULL,
    ms_more INTEGER NOT NULL,
    PRIMARY KEY (began, project_id, provider, model)
);
CREATE INDEX usage_hours_by_project ON usage_hours (project_id, began);
CREATE INDEX usage_hours_by_provider ON usage_hours (provider, began);
CREATE INDEX usage_hours_by_model ON usage_hours (model, began);
