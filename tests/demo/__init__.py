"""`make demo`: see hpcimg at work on this host, in less than two minutes."""
