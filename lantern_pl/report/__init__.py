"""`lantern report`: one HTML file about one or several runs. Torch-free."""
