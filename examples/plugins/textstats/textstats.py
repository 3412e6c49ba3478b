"""Counts lines, words and characters of a text, and its most frequent words."""
from collections import Counter


class TextStats:
    name = "textstats"
    version = "1.0.0"

    def initialize(self, config):
        self.top = config.get("top", 5)

    def execute(self, text):
        words = [word.strip(".,;:!?\"'()").lower() for word in text.split()]
        common = Counter(word for word in words if word).most_common(self.top)
        return {"lines": len(text.splitlines()), "words": len(words), "characters": len(text), "most_common": common}

    def execute_stream(self, text):
        for number, line in enumerate(text.splitlines(), 1):
            yield {"line": number, "words": len(line.split())}
        return self.execute(text)
