"""`row_weight`: soon and later share the rows between them, and each is the objective on a batch of its rows alone."""
