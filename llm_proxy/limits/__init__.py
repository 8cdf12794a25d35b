"""What a token may use up."""
