"""The operator's commands: looking into a journal, mending what was refused, replaying, forgetting a device."""
