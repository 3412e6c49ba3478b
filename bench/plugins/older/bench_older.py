"""The plugins of the benchmarks with the methods that older base libraries insist on."""
import bench_chunks
import bench_noop


class Older:
    def initialize(self, config=None):
        pass

    def get_config_schema(self):
        return {}

    def get_current_config(self):
        return {}

    def cleanup(self):
        pass


class Noop(Older, bench_noop.Noop):
    pass


class Chunks(Older, bench_chunks.Chunks):
    pass
