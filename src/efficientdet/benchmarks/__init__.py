"""How fast each part is: input pipeline, training step, inference; measured in turns with what it is compared to."""
