"""The node-local cache: its files, and the protocol that keeps them consistent."""
