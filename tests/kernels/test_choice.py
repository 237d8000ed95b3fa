"""Kernels are chosen when a network is built, and every layer inside takes the same."""

import keras
import pytest

from efficientdet.errors import UserError
from efficientdet.kernels import choice, convolutions, normalization
from efficientdet.model import layers
from efficientdet.model.efficientdet import EfficientDet


def _kernels_of(model):
    return [layer.kernels for layer in model._flatten_layers() if hasattr(layer, "kernels")]


def test_every_layer_computes_with_the_kernels_that_its_network_was_given(tiny):
    chosen = choice.choose("shifts")
    model = EfficientDet(tiny, kernels=chosen)
    assert len(_kernels_of(model)) > 100
    assert all(kernels is chosen for kernels in _kernels_of(model))


def test_without_a_choice_they_are_those_of_the_running_backend(tiny):
    assert set(_kernels_of(EfficientDet(tiny))) == {choice.plain()}


def test_layers_made_in_build_take_them_too(tiny):
    """Resampling makes its convolution when it knows the channels of its input."""
    chosen = choice.portable()
    with choice.used(chosen):
        layer = layers.Resample(8, momentum=0.9)
    layer.build((None, 4, 4, 16))
    assert layer.conv.kernels is chosen
    assert layer.norm.kernels is chosen


def test_a_choice_ends_with_its_block():
    with choice.used(choice.choose("shifts")):
        with choice.used(choice.portable()):
            assert choice.current() == choice.portable()
        assert choice.current() == choice.choose("shifts")
    assert choice.current() == choice.plain()


def test_a_choice_changes_what_it_says_and_nothing_else():
    plain = choice.plain()
    assert choice.choose("convolution") == plain
    assert choice.choose("shifts").convolve_depthwise is convolutions.shift_and_add
    assert choice.choose("shifts").normalize is plain.normalize
    assert choice.portable().convolve_depthwise is convolutions.depthwise_in_float32
    assert choice.portable().convolve is plain.convolve
    assert choice.synchronized().normalize is normalization.normalize_over_replicas
    assert choice.synchronized().rescale is plain.rescale


def test_without_a_gpu_auto_is_the_backend_s_convolution():
    assert choice.find_depthwise("auto", devices=1) == "convolution"
    assert choice.find_depthwise("auto", devices=2) == "convolution"
    assert choice.find_depthwise("shifts") == "shifts"


def test_kernels_in_pallas_need_jax():
    if keras.backend.backend() == "jax":
        pytest.skip("has JAX")
    with pytest.raises(UserError, match="`depthwise` is pallas, which needs JAX, but Keras uses `tensorflow`"):
        choice.choose("pallas")
