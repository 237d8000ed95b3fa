"""The doctor: what it looks at works here, and what does not is said, with exit status 1."""

import json

import pytest

from efficientdet import backend, cli, diagnosis
from efficientdet.errors import UserError


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return diagnosis.doctor(run_dir=str(tmp_path_factory.mktemp("doctor") / "run"))


def test_a_machine_that_passes_the_tests_is_found_good(found):
    assert found.is_good, [finding for finding in found.findings if not finding.is_good]
    texts = {finding.what: finding.text for finding in found.findings}
    assert backend.running() in texts["devices"]
    assert "keras 3" in texts["packages"]
    assert set(texts) >= {"float32", "tf32", "mixed_bfloat16", "mixed_float16", "XLA", "records", "run folder"}


def test_float32_products_are_far_more_exact_than_bfloat16_s(found):
    errors = {f.what: float(f.text.split()[2]) for f in found.findings if f.text.startswith("products within")}
    assert errors["float32"] < 1e-5 < 1e-3 < errors["mixed_bfloat16"]


def test_a_precision_that_is_not_what_it_says_is_found(monkeypatch):
    monkeypatch.setitem(diagnosis._BOUNDS, "mixed_bfloat16", 1e-5)
    with pytest.raises(UserError, match=r"products are off by .* do not train"):
        diagnosis._check_precision("mixed_bfloat16")
    backend.use_precision("float32")


def test_what_a_check_raises_is_a_finding_in_one_line():
    def fail():
        raise RuntimeError("no such device\n  at somewhere")

    finding = diagnosis._examine("devices", fail)
    assert not finding.is_good
    assert finding.text == "no such device"


def test_the_command_has_status_1_when_something_is_wrong(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", "--run-dir", str(tmp_path / "file" / "run"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["is_good"]
    assert [finding["what"] for finding in said["findings"] if not finding["is_good"]] == ["run folder"]
    assert cli.main(["doctor", "--run-dir", str(tmp_path / "run")]) == 0
    assert "sum over devices" in capsys.readouterr().out
