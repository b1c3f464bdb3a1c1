"""The `gdd` command and its page in the browser."""
