"""`lantern serve`: a pair of students over HTTP, on LitServe."""
