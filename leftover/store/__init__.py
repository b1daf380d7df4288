"""The table on disk, and the manifest that says what each part was computed from."""
