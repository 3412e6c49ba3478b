import standin


def create_app(module_name, class_name, adapter_specs=None):
    return standin.App("typed", "Plugin Worker", module_name, class_name, adapter_specs)
