"""The sub-commands of ``bisenet`` that need the service; each module is imported when it is called."""
