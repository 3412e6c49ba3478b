"""The cheapest plugin there is."""


class Noop:
    name = "noop"
    version = "1.0.0"

    def execute(self, *args, **kwargs):
        return None
