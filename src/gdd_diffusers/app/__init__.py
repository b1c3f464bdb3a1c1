"""What people run: the `gdd` command and its page."""
