"""What the cache, a source and a conversion say to each other."""
