"""The artifact store: manifests, locks, references, verification, garbage collection."""
