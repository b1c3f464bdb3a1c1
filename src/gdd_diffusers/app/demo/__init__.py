"""The page of `gdd demo`."""
