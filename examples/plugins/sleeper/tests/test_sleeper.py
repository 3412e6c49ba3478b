import unittest

import cjmworker
from sleeper import Sleeper


class SleeperTest(unittest.TestCase):
    def setUp(self):
        self.plugin = Sleeper()
        self.progress = []
        self.plugin.report_progress = lambda fraction, message="": self.progress.append(fraction)
        self.plugin.initialize({})

    def test_steps_report_progress(self):
        self.assertEqual(self.plugin.execute(0, steps=4)["slept"], 0)
        self.assertEqual(self.progress, [0.25, 0.5, 0.75, 1.0])

    def test_stream(self):
        self.assertEqual([chunk["step"] for chunk in self.plugin.execute_stream(0, steps=3)], [1, 2, 3])

    def test_fail_with_category_at_a_step(self):
        with self.assertRaises(cjmworker.TransientError) as raised:
            self.plugin.execute(0, steps=4, fail="no luck", fail_at=3, category="transient")
        self.assertEqual((str(raised.exception), self.progress), ("no luck", [0.25, 0.5]))

    def test_memory_and_large_result(self):
        self.assertEqual(len(self.plugin.execute(0, steps=1, memory_mb=8, result_bytes=1000)), 1000)

    def test_load_seconds_reports_progress(self):
        self.plugin.initialize({"load_seconds": 0.001})
        self.assertEqual(len(self.progress), 20)


if __name__ == "__main__":
    unittest.main()
