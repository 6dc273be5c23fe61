"""The report of a comparison: a page that needs nothing else, a contact sheet, and the numbers as JSON."""
