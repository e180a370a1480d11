"""What the Python applications of the tests share: one JSON object says what to do, one line per record says what came of it."""

import json
import os
import sys
import threading
import time

WRITING = threading.Lock()


def job():
    return json.loads(sys.argv[1])


def context(index, every, unsampled_every):
    if every == 0 or index % every != 0:
        return None
    unsampled = unsampled_every != 0 and index // every % unsampled_every == unsampled_every - 1
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-{'00' if unsampled else '01'}"


def now_us():
    return time.time_ns() // 1000


def tell(line):
    with WRITING:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def received(job, message_facts):
    """A record was handed to the application."""
    partition, offset, traceparent = message_facts
    tell({"client_id": job["client_id"], "partition": partition, "offset": offset, "traceparent": traceparent, "to_us": now_us()})


class Rounds:
    """Work until a file appears: a new client with the next codec each `round_ms`, records at an even pace."""

    def __init__(self, job):
        self.job, self.sent, self.start = job, 0, time.monotonic()

    def over(self):
        return os.path.exists(self.job["until"])

    def codecs(self):
        """The codec of each round, until it is over."""
        turn = 0
        while not self.over():
            self.end = time.monotonic() + self.job["round_ms"] / 1000 if self.job["round_ms"] else float("inf")
            yield self.job["codecs"][turn % len(self.job["codecs"])] if self.job["codecs"] else None
            turn += 1

    def goes_on(self):
        return time.monotonic() < self.end and not self.over()

    def record(self, codec):
        """The next record when it is due: its key, value and context, and the line that will tell of it."""
        index, self.sent = self.sent, self.sent + 1
        wait = self.start + index / self.job["rate"] - time.monotonic()
        if wait > 0.001:
            time.sleep(wait)
        traceparent = context(index, self.job["context_every"], self.job["unsampled_every"])
        line = {"client_id": self.job["client_id"], "codec": codec, "traceparent": traceparent, "from_us": now_us()}
        return b"key-%d" % (index % 16), b"x" * (index * 37 % self.job["value_bytes"]), traceparent, line
