"""What `task=evaluate` is made of."""
