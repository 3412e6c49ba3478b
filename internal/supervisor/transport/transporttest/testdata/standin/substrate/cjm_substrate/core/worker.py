import standin


def create_app(module_name, class_name, adapter_specs=None):
    return standin.App("typed", "Capability Worker", module_name, class_name, adapter_specs)
