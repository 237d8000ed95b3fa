"""Exports models to the formats of other runtimes; each export is run by its runtime and compared with Keras."""
