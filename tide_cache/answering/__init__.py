"""A teacher writes the answers to a corpus's prompts: in parts that survive a stop, joined into one file."""
