"""The folder of one run: what it holds, what its files are called, and a finished one read back."""
