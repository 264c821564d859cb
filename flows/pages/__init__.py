"""HTML pages for people: one file each, self-contained, that fetches nothing."""
