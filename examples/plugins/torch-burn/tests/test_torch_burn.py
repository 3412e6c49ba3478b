import unittest
from types import SimpleNamespace
from unittest import mock

import cjmworker
import torch_burn
from torch_burn import MIB, TorchBurn


class Block:
    def __init__(self, cuda, size, card):
        self.cuda, self.size, self.card = cuda, size, card
        cuda.held[card] += size
        cuda.peak[card] = max(cuda.peak[card], cuda.held[card])

    def fill_(self, value):
        return self

    def __del__(self):
        self.cuda.held[self.card] -= self.size


class Cuda:
    total = 8000 * MIB

    def __init__(self, cards):
        self.held, self.peak, self.emptied = [0] * cards, [0] * cards, 0

    def is_available(self):
        return bool(self.held)

    def device_count(self):
        return len(self.held)

    def memory_allocated(self, card):
        return self.held[card]

    memory_reserved = memory_allocated

    def mem_get_info(self, card):
        return self.total - self.held[card], self.total

    def max_memory_allocated(self, card):
        return self.peak[card]

    def reset_peak_memory_stats(self, card):
        self.peak[card] = self.held[card]

    def get_device_properties(self, card):
        return SimpleNamespace(name="Card", uuid="GPU-%d" % card)

    def synchronize(self, card):
        pass

    def empty_cache(self):
        self.emptied += 1


class Torch:
    __version__ = "2"
    uint8 = "uint8"

    def __init__(self, cards):
        self.cuda = Cuda(cards)
        self.products = 0

    def empty(self, size, dtype, device):
        return Block(self.cuda, size, int(device.split(":")[1]))

    def rand(self, rows, columns, device):
        return Block(self.cuda, rows * columns * 4, int(device.split(":")[1]))

    def mm(self, a, b, out):
        self.products += 1


class TorchBurnTest(unittest.TestCase):
    def load(self, cards, config=None):
        self.torch = Torch(cards)
        plugin = TorchBurn()
        plugin.load_torch = lambda: self.torch
        plugin.initialize(config or {})
        return plugin

    def test_without_a_card_it_says_so(self):
        with self.assertRaisesRegex(cjmworker.FatalError, "finds no graphics card here"):
            self.load(0)

    def test_holds_what_it_was_told_and_gives_the_rest_back(self):
        plugin = self.load(2, {"resident_mb": 300, "matrix": 1024})
        self.assertEqual(self.torch.cuda.held, [300 * MIB, 300 * MIB])
        with mock.patch.object(torch_burn, "cancelled", side_effect=[False, False, True]):
            result = plugin.execute(seconds=60, take_mb=100)
        self.assertEqual((result.rounds, self.torch.products), (2, 4))
        self.assertEqual(result.peak_allocated_mb, 412)
        self.assertEqual([(card.uuid, card.allocated_mb, card.free_mb) for card in result.cards], [("GPU-0", 412, 7588), ("GPU-1", 412, 7588)])
        self.assertEqual(self.torch.cuda.held, [300 * MIB, 300 * MIB])

    def test_another_config_and_release_free_the_old_memory(self):
        plugin = self.load(1, {"resident_mb": 300})
        plugin.initialize({"resident_mb": 50})
        self.assertEqual(self.torch.cuda.held, [50 * MIB])
        plugin.release()
        self.assertEqual(self.torch.cuda.held, [0])

    def test_wrong_input_is_the_callers_fault(self):
        plugin = self.load(1)
        for wrong in ({"seconds": -1}, {"take_mb": -5}, {"seconds": 1e9}):
            with self.subTest(wrong), self.assertRaises(cjmworker.UserInputError):
                plugin.execute(**wrong)


if __name__ == "__main__":
    unittest.main()
