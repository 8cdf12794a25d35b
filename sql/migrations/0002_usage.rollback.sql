DROP TABLE usage_hours;
DROP TABLE usage_minutes;
