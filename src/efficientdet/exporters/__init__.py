"""Models in formats that other programs run; each is written and then compared with Keras."""
