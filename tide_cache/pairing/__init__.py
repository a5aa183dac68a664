"""From a chat row to a sample as both tokenizers see it."""
