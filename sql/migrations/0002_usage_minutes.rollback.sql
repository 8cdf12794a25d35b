DROP TABLE usage_minutes;
