"""What the words of a command mean, without running it."""

from efficientdet.command_line import grammars, parsing
from efficientdet.training import experiment


def training_arguments(words):
    """Returns the arguments of `efficientdet.train` by name."""
    return parsing.parse(experiment.train, grammars.train(list(words)), "efficientdet train")[1]


def training_config(words):
    """Returns the config that `efficientdet train` would train."""
    return training_arguments(words)["config"]
