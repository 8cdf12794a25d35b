"""One thread that ends this process when a test runs for too long."""

import threading
import time
from typing import Any

import pytest_timeout


class Watchdog:
    """Does what pytest-timeout does with a new thread for each test, which takes longer than most tests."""

    def __init__(self) -> None:
        self._due: tuple[float, Any, Any] | None = None
        self._thread: threading.Thread | None = None

    def watch(self, item: Any, settings: Any) -> None:
        """A test begins, which may run for as long as its settings say."""
        self._due = (time.monotonic() + settings.timeout, item, settings)
        if not self._thread:
            self._thread = threading.Thread(target=self._look, name=__name__, daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """The test is over."""
        self._due = None

    def _look(self) -> None:
        while True:
            time.sleep(1)
            due = self._due
            if due and time.monotonic() > due[0]:
                # Tells where every thread stands, and exits.
                pytest_timeout.timeout_timer(*due[1:])
