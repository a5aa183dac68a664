"""How a model writes: the tokens of a block by several steps, or one token after another, and in what order."""
