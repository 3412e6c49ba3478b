from abc import ABC


class TaskAdapter(ABC):
    task_name = ""
    required_tool_protocol = None
