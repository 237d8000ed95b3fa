"""Detection over HTTP, and a page for people."""
