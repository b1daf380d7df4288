"""Services over HTTP: their addresses and keys, and requests that are tried again."""
