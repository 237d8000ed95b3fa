"""What is said when another process of a run is gone."""

import pytest

from efficientdet.training.distributed import liveness


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ((), "no checkpoint was saved yet, so they start from step 0."),
        (("step-00000003.safetensors", "step-00000012.safetensors"), "they resume from step-00000012.safetensors."),
    ],
)
def test_who_starts_again_is_told_where_that_would_be(tmp_path, monkeypatch, checkpoints, expected):
    monkeypatch.setattr(liveness, "_SILENT_SECONDS", 0.1)
    (tmp_path / "checkpoints").mkdir()
    for name in checkpoints:
        (tmp_path / "checkpoints" / name).touch()
    signs = liveness.Signs(tmp_path, 0, 2)
    other = tmp_path / liveness.FOLDER / "1"
    other.write_text("alive host:1 0")
    signs.wait_for_all(5)  # its sign has changed once and does not change any more
    signs.watch(lambda lost: None)
    lost = signs.find_lost(5)
    signs.end()
    assert lost is not None
    assert lost.line.startswith("process 1 (host:1) has not responded")
    assert lost.line.endswith(f"Start all processes again with the same command; {expected}")
