"""The site tier: images on a file system that all nodes mount, fetched and converted once."""
