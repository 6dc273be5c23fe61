"""Making a part of a picture anew."""
