import standin


def create_app(module_name, class_name):
    return standin.App("first", "Plugin Worker", module_name, class_name)
