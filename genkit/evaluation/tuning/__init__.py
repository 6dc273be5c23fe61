"""Finding where a method may run and with which settings, so that a stated budget is met; measured, then written."""
