"""What the columns of a file are for, by their names and by what stands in them."""
