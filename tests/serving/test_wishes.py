"""What a request asks for, wherever it says so: query, form, JSON; and pages elsewhere that ask."""

import base64
import json

import little_service
import pytest

from efficientdet.errors import UserError
from efficientdet.serving import uploads, wishes
from efficientdet.serving.admission import Limits, Refusal
from efficientdet.serving.service import serve
from efficientdet.structures import Category

_CATEGORIES = (Category(id=5, name="cat"), Category(id=9, name="a,b"), Category(id=11, name="guinea pig"))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("score_threshold", "high")], "score_threshold is 'high'; expected a number from 0 to 1."),
        ([("score_threshold", "0.1"), ("score_threshold", "0.2")], "score_threshold is set 2 times; set it once."),
        ([("classes", "god")], "classes has the unknown class 'god'; choose from cat, a,b, guinea pig."),
        ([("class_thresholds", "cat")], "class_thresholds contains 'cat'; expected CLASS:NUMBER, such as person:0.5."),
        ([("class_thresholds", "cat:2")], "class_thresholds of 'cat' is '2.0'; expected a number from 0 to 1."),
        (
            [("class_thresholds", "god:0.2")],
            "class_thresholds has the unknown class 'god'; choose from cat, a,b, guinea pig.",
        ),
        ([("class_agnostic", "perhaps")], "class_agnostic is 'perhaps'; expected true or false."),
        ([("max_detections", "0")], "max_detections is '0'; expected an integer of at least 1."),
        ([("max_detections", "9" * 40)], "max_detections is '9999999999999999999999999999999999999999'; expected"),
    ],
)
def test_what_cannot_be_asked_for(pairs, said):
    with pytest.raises(Refusal) as caught:
        wishes.read(pairs, _CATEGORIES, wishes.Defaults())
    assert caught.value.status == 422
    assert caught.value.detail.startswith(said)


def test_requests_say_what_they_want_else_the_service_does():
    defaults = wishes.Defaults(
        score_threshold=0.4, class_thresholds={"cat": 0.7}, class_agnostic=True, max_detections=9
    )
    choice, threshold = wishes.read([], _CATEGORIES, defaults)
    assert (threshold, choice.class_agnostic, choice.max_detections) == (0.4, True, 9)
    assert choice.thresholds.tolist() == pytest.approx([0.7, 0.4, 0.4])
    pairs = [("score_threshold", "0.1"), ("class_agnostic", "false"), ("max_detections", "2"), ("classes", "a,b")]
    choice, _ = wishes.read([*pairs, ("class_thresholds", "cat:0.2,guinea pig:0.3")], _CATEGORIES, defaults)
    assert (choice.class_agnostic, choice.max_detections) == (False, 2)
    assert choice.thresholds[1] == pytest.approx(0.1)
    assert choice.thresholds[[0, 2]].min() > 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 9_000, 400),
        (b"[" * 100_000, 413),
        (b"[1]", 422),
        (b"{}", 422),
        (b'{"image": 3}', 422),
        (b'{"image": "YQ==", "images": []}', 422),
        (b'{"images": []}', 422),
        (b'{"images": "YQ=="}', 422),
        (b'{"images": ["YQ==", "YQ==", "YQ=="]}', 413),
        (b'{"image": "YQ==", "key": 1}', 422),
        (b'{"image": "YQ==", "max_detections": [1]}', 422),
        (b'{"image": "file:///etc/passwd"}', 415),
        (b'{"image": ""}', 415),
    ],
)
def test_json_that_cannot_be_used(body, status):
    with pytest.raises(Refusal) as caught:
        uploads._of_json(body, Limits(max_images=2))
    assert caught.value.status == status


def _same_everywhere(service, options, query, fields):
    """Asks in the query, in a form and in JSON, and holds the answers to each other."""
    content = little_service.encode(little_service.image(1))
    asked = service.detect(content, f"?{query}")
    body, headers = little_service.form([("image", content)])
    head = '--limit\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    fields = "".join(head.format(name, value) for name, value in fields).encode()
    answers = [asked, service.ask("/v1/detect", fields + body, headers)]
    coded = base64.b64encode(content).decode()
    for image in ({"image": coded}, {"images": [f"data:image/png;base64,{coded}"]}):
        answers.append(
            service.ask("/v1/detect", json.dumps({**image, **options}), {"Content-Type": "application/json"})
        )
    assert [answer.status for answer in answers] == [200] * 4
    assert all(answer.json == asked.json for answer in answers)
    return asked.json["images"][0]["detections"]


def test_query_form_and_json_are_the_same(service):
    everything = _same_everywhere(service, {"score_threshold": 0}, "score_threshold=0", [("score_threshold", "0")])
    options = {"score_threshold": 0, "class_agnostic": True, "max_detections": 3, "class_thresholds": {"cat": 1}}
    fields = [("score_threshold", "0"), ("class_agnostic", "true"), ("max_detections", "3")]
    query = "&".join(f"{name}={value}" for name, value in fields) + "&class_thresholds=cat:1"
    some = _same_everywhere(service, options, query, [*fields, ("class_thresholds", "cat:1")])
    assert len(some) == 3 < len(everything)
    assert "cat" not in {each["class"] for each in some}
    body, headers = little_service.form([])
    assert service.ask("/v1/detect", body, headers).status == 400


def test_pages_elsewhere_ask_only_where_that_was_allowed(service, weights_file, tmp_path):
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert service.ask("/v1/detect", headers=preflight, method="OPTIONS").status == 405
    content = little_service.encode(little_service.image(1))
    with little_service.run(
        weights_file, tmp_path, "--cors-origins", "https://a.example", "--max-detections", "1"
    ) as ours:
        answer = ours.ask("/v1/detect", headers=preflight, method="OPTIONS")
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "content-type" in answer.headers["access-control-allow-headers"]
        for body, status in ((content, 200), (b"nothing", 415)):
            answer = ours.ask("/v1/detect", body, {"Content-Type": "image/png", "Origin": "https://a.example"})
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://a.example")
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        other = ours.ask("/v1/detect", content, {"Content-Type": "image/png", "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        assert len(other.json["images"][0]["detections"]) == 1
        assert ours.stop() == 0


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "", "https://a b"])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(UserError, match=f"`cors_origins` contains `{origin}`"):
        serve("no", cors_origins=(origin,))
