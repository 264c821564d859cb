"""SQL views over the tables that stages wrote: which stage, which files, which columns."""
