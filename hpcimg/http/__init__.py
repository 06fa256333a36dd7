"""Speaking http: addresses that may be reached, sessions, retries, downloads."""
