"""DuckDB over Arrow tables and Parquet files: queries, files."""
