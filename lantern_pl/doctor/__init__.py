"""`lantern doctor`: whether this machine and what is installed on it are fit for work."""
