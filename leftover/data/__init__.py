"""From files to rows, from rows to token ids, from token ids to batches."""
