"""Processes without rights that fetch, convert and verify for this one."""
