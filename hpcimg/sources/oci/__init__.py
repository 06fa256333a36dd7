"""Images in OCI and Docker registries, layouts and archives."""
