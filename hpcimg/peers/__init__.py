"""The nodes of one job share an image that none of them has yet."""
