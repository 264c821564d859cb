"""The feature store's Parquet shards, read as one table."""
