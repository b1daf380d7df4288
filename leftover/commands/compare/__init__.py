"""`leftover compare`: every method on the same rows, from the same reference, under the same budget, in one table."""
