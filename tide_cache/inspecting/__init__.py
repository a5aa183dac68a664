"""Reading a cache for people and programs: its figures, one view of it, an export."""
