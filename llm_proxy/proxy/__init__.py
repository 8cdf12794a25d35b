"""The site of the calls."""
