"""The calls in progress on a pipeline, one for each thread, so that calls from several threads are independent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Walk:
    num_timesteps: int | None = None
    interrupt: bool = False  # stop early


class Walks:
    def __init__(self) -> None:
        self.by_thread: dict[int, Walk | None] = {}
        self.last = Walk()

    @contextmanager
    def start(self, num_timesteps: int) -> Iterator[Walk]:
        thread = threading.get_ident()
        outer = self.by_thread.get(thread)  # there is one if a callback calls the pipeline
        self.by_thread[thread] = self.last = walk = Walk(num_timesteps)
        try:
            yield walk
        finally:
            self.by_thread[thread] = outer

    @property
    def own(self) -> Walk | None:
        return self.by_thread.get(threading.get_ident())

    def set_interrupt(self, value: bool) -> None:
        """Interrupt the call that this thread is in or, if it is in none, all calls."""
        for walk in [self.own] if self.own else list(self.by_thread.values()):
            if walk is not None:
                walk.interrupt = value
