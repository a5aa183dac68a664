"""From row statistics and targets to a sum and a count; pure, one file each."""
