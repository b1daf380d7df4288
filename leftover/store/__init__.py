"""The table on disk, and the manifest: what has been computed, from what."""
