"""The tabs of the page: each asks for the settings of a task and shows what was made."""
