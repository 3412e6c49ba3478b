"""As much of torch as the GPU checks use, on the pretended cards of nvml.c: a file per
process says what it holds. TORCH_FAKE_DIR names the directory. Only for proving the
checks on a machine without a GPU."""
import os
import time

uint8 = "uint8"
__version__ = "0.0-pretended"
_DIR = os.environ.get("TORCH_FAKE_DIR", "")
_CONTEXT = 300 << 20


def _cards():
    with open(os.path.join(_DIR, "devices")) as file:
        return [line.split() for line in file if line.strip()]


def _visible():
    cards = _cards()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(range(len(cards)))
    ids = [card[0] for card in cards]
    found = []
    for one in wanted.split(","):
        if one.strip() not in ids:
            break  # as CUDA does: the first that is unknown ends the list
        found.append(ids.index(one.strip()))
    return found


def _stat(pid):
    """State and start time: a process id alone may belong to another by now."""
    with open("/proc/%s/stat" % pid, "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0], fields[19].decode()


def _alive(name):
    pid, _, start = name.partition("-")
    try:
        state, begin = _stat(pid)
        return state not in (b"Z", b"X") and begin == start
    except OSError:
        return False


def _used(card):
    total = 0
    for name in os.listdir(os.path.join(_DIR, "use")):
        if not name.replace("-", "").isdigit():
            continue
        path = os.path.join(_DIR, "use", name)
        try:
            if not _alive(name) and os.path.exists(path + ".dead"):
                with open(os.path.join(_DIR, "lag_ms")) as file:
                    if (time.time() - os.stat(path + ".dead").st_mtime) * 1000 > int(file.read()):
                        continue
            with open(path) as file:
                total += sum(int(line.split()[1]) for line in file if int(line.split()[0]) == card)
        except (OSError, IndexError, ValueError):
            continue
    return total


class OutOfMemoryError(RuntimeError):
    pass


class _Tensor:
    def __init__(self, card, size):
        self._card, self._size = card, size
        cuda._allocate(card, size)

    def fill_(self, _value):
        return self

    def __del__(self):
        cuda._allocated[self._card] -= self._size


def empty(size, dtype=None, device="cuda:0"):
    return _Tensor(_visible()[int(device.partition(":")[2] or 0)], size)


class _Properties:
    def __init__(self, card):
        uuid, total, self.name = _cards()[card]
        self.uuid, self.total_memory = uuid[len("GPU-"):], int(total)


class _Cuda:
    """Reserved memory stays until empty_cache, as in the real allocator."""

    OutOfMemoryError = OutOfMemoryError

    def __init__(self):
        self._context, self._reserved, self._allocated = set(), {}, {}

    def is_available(self):
        return bool(_DIR and _visible())

    def is_initialized(self):
        return bool(self._context)

    def device_count(self):
        return len(_visible())

    def get_device_properties(self, index):
        return _Properties(_visible()[index])

    def _begin(self, card):
        if card not in self._context:
            self._context.add(card)
            self._reserved[card] = self._allocated[card] = 0
            self._publish()

    def _publish(self):
        path = os.path.join(_DIR, "use", "%d-%s" % (os.getpid(), _stat("self")[1]))
        with open(path + ".new", "w") as file:
            for card in sorted(self._context):
                file.write("%d %d\n" % (card, _CONTEXT + self._reserved[card]))
        os.replace(path + ".new", path)

    def _allocate(self, card, size):
        self._begin(card)
        grow = max(0, self._allocated[card] + size - self._reserved[card])
        self._allocated[card] += size
        if grow > int(_cards()[card][1]) - _used(card):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate %.2f GiB" % (size / (1 << 30)))
        self._reserved[card] += grow
        self._publish()

    def mem_get_info(self, index=0):
        card = _visible()[index]
        self._begin(card)
        total = int(_cards()[card][1])
        return total - _used(card), total

    def memory_reserved(self, index=0):
        return self._reserved.get(_visible()[index], 0)

    def memory_allocated(self, index=0):
        return self._allocated.get(_visible()[index], 0)

    def empty_cache(self):
        for card in self._context:
            self._reserved[card] = self._allocated[card]
        self._publish()

    def synchronize(self, index=0):
        return None


cuda = _Cuda()
