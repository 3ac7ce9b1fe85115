"""What a policy of one's own must keep to."""
