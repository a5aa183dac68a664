"""What people see of a cache and a run."""
