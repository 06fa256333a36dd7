"""Image files: formats, processors, signatures."""
