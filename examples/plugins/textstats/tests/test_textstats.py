import unittest

from textstats import TextStats

TEXT = "The cat sat.\nThe dog ran, and the cat ran."


class TextStatsTest(unittest.TestCase):
    def setUp(self):
        self.plugin = TextStats()
        self.plugin.initialize({"top": 2})

    def test_counts(self):
        found = self.plugin.execute(TEXT)
        self.assertEqual((found["lines"], found["words"], found["characters"]), (2, 10, len(TEXT)))
        self.assertEqual(found["most_common"], [("the", 3), ("cat", 2)])

    def test_empty_text(self):
        self.assertEqual(self.plugin.execute("")["words"], 0)

    def test_stream_yields_lines_and_returns_the_same_result(self):
        stream = self.plugin.execute_stream(TEXT)
        chunks = []
        while True:
            try:
                chunks.append(next(stream))
            except StopIteration as end:
                self.assertEqual(end.value, self.plugin.execute(TEXT))
                break
        self.assertEqual([chunk["words"] for chunk in chunks], [3, 7])


if __name__ == "__main__":
    unittest.main()
