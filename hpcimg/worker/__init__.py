"""Unprivileged processes that fetch, convert and verify."""
