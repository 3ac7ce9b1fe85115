"""What the experiments share; nothing here knows any of them."""
