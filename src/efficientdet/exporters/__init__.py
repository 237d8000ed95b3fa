"""Models in formats that other programs run; each is written, run by its real program and compared with Keras."""
