"""`lantern audit`: whether a student and its teacher treat people alike, and whether a text can talk them round."""
