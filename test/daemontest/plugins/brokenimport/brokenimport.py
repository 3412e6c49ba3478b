import a_module_that_nobody_has_installed  # noqa: F401


class Broken:
    def execute(self):
        return None
