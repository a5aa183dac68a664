"""From a corpus spec to chat rows."""
