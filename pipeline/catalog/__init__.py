"""The tables that stages wrote as SQL views: which stage, which files, which columns."""
