"""Speed of each part: input pipeline, training step, inference; measured alternately with what it is compared to."""
