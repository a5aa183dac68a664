"""From masked views to what the teacher says about them."""
