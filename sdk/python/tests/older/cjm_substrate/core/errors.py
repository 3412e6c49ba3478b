"""Four categories; a cancel counts as transient."""


class CapabilityError(Exception):
    category = "fatal"
    default_retriable = False


class CapabilityInputError(CapabilityError):
    category = "user_input"
    default_retriable = True

    def __init__(self, message="", *, fields_invalid=None):
        super().__init__(message)
        self.fields_invalid = fields_invalid


class CapabilityTransientError(CapabilityError):
    category = "transient"
    default_retriable = True

    def __init__(self, message="", *, retry_after_seconds=None):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CapabilityCancelledError(CapabilityTransientError):
    def __init__(self, capability_name):
        super().__init__("Capability %r was cancelled" % capability_name)
