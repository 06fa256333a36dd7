"""Images in OpenStack Swift."""
