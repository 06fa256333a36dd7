"""The interface between the cache, the sources and the conversion."""
