"""What the app remembers."""

from collections import deque, namedtuple
from datetime import datetime, timezone
from threading import Lock

Received = namedtuple("Received", "sender kind id at")

KEEP = 20  # webhooks on the page


class Shop:
    """Remembers the latest webhooks. It is used by several threads of one process."""

    def __init__(self):
        self._lock = Lock()
        self._seen = set()
        self._latest = deque(maxlen=KEEP)  # newest first

    def handle(self, key, sender, kind, event_id):
        """Does what an event asks for, once, and says whether this was the first
        time: webhooks come at least once, and sometimes twice. A real app keeps
        the keys in its database, in the transaction that does the work."""
        with self._lock:
            if key in self._seen:
                return False
            self._seen.add(key)
            self._latest.appendleft(Received(sender, kind, event_id, datetime.now(timezone.utc)))
            return True

    def latest(self):
        with self._lock:
            return list(self._latest)
