"""Backups: what it takes to go on elsewhere, in one archive."""
