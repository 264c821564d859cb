"""DuckDB on the store's tables: queries, views, the catalog file."""
