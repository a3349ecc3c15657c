"""What is checked and filled in before Ray starts."""
