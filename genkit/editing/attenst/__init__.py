"""Style transfer by attention."""
