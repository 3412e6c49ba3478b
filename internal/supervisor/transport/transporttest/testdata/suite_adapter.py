"""A task adapter for the suite's plugin."""


class SuiteAdapter:
    task_name = "shout"

    def __init__(self, tool):
        self.tool = tool

    def say(self, text):
        return {"__wire__": "shout", "data": {"said": text.upper()}}
