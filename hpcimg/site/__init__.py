"""What the site decides about one reference: whether, from where, with which credentials."""
