"""Pages that people look at: one HTML file each, complete in itself, fetching nothing."""
