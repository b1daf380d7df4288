"""`leftover select`: the rows that are worth training on, for any other trainer."""
