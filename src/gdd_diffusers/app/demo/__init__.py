"""The page of `gdd demo`: drop an image on it, and see before and after."""

from .server import launch


__all__ = ["launch"]
