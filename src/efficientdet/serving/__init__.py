"""Detection over HTTP, with a web page."""
