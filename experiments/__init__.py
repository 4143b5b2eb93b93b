"""What is claimed, one file per claim; bench/ beside them."""
