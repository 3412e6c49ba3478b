"""Chunks like the partial results of a recogniser."""
import time


class Chunks:
    name = "chunks"
    version = "1.0.0"

    def execute(self, *args, **kwargs):
        return None

    def execute_stream(self, count, every=0.0, pad=0):
        """Yields ``count`` chunks, one each ``every`` seconds, each ``pad`` bytes longer
        than it had to be. ``at`` is when it was yielded, in nanoseconds since 1970."""
        filler = "x" * pad
        due = time.monotonic()
        for n in range(count):
            if every:
                due += every
                time.sleep(max(0.0, due - time.monotonic()))
            chunk = {"n": n, "text": "and so my fellow citizens", "at": time.time_ns()}
            if pad:
                chunk["filler"] = filler
            yield chunk
