import unittest
from unittest import mock

import cjmworker
import embed_plugin
from embed_plugin import Embed


def encode(texts):
    """The share of a and of b."""
    counts = [(text.count("a"), text.count("b")) for text in texts]
    return [[a / (a * a + b * b) ** 0.5, b / (a * a + b * b) ** 0.5] for a, b in counts]


class EmbedTest(unittest.TestCase):
    def setUp(self):
        self.plugin = Embed()
        self.plugin.load_encoder = lambda config: encode
        self.plugin.initialize({"batch_size": 2})

    def test_one_vector_a_text_in_batches(self):
        stream = self.plugin.execute_stream(["a", "b", "ab"])
        self.assertEqual(next(stream), {"first": 0, "vectors": [[1, 0], [0, 1]]})
        self.assertEqual(next(stream)["first"], 2)
        result = self.plugin.execute("a")
        self.assertEqual((result.dimensions, result.vectors, result.matches), (2, [[1, 0]], None))

    def test_texts_in_the_order_of_their_likeness(self):
        result = self.plugin.execute(["b", "aab", "a", "ab", "a"], query="aaa")
        self.assertEqual([match.index for match in result.matches], [2, 4, 1, 3, 0])
        self.assertEqual((result.matches[0].text, result.matches[0].score, result.matches[-1].score), ("a", 1.0, 0.0))

    def test_a_cancel_keeps_the_batches_so_far(self):
        with mock.patch.object(embed_plugin, "cancelled", side_effect=[False, True]):
            self.assertEqual(len(self.plugin.execute(["a", "b", "ab"]).vectors), 2)
        with mock.patch.object(embed_plugin, "cancelled", return_value=True):
            self.assertEqual(self.plugin.execute(["a"], query="b").matches, None)

    def test_wrong_input_is_the_callers_fault(self):
        for wrong in (None, [], [1], {"a": 1}):
            with self.subTest(texts=wrong), self.assertRaises(cjmworker.UserInputError):
                self.plugin.execute(wrong)
        with self.assertRaises(cjmworker.UserInputError):
            self.plugin.execute(["a"], query=5)

    def test_a_missing_model_is_named(self):
        with self.assertRaisesRegex(cjmworker.FatalError, "no_such_package with model.onnx is not installed"):
            embed_plugin._packaged("no_such_package", "model.onnx")


if __name__ == "__main__":
    unittest.main()
