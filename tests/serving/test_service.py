"""The service in a process of its own: answers, batches, crowds, and a good end."""

import concurrent.futures
import itertools
import json
import re
import signal
import socket
import threading
import time

import little_service
import pytest

_QUERY = "?score_threshold=0.2"


@pytest.fixture(scope="module")
def images():
    """24 images of different sizes, as arrays and as files."""
    arrays = [little_service.image(seed, (40 + 5 * (seed % 7), 60 + 9 * (seed % 5))) for seed in range(24)]
    return [(pixels, little_service.encode(pixels)) for pixels in arrays]


@pytest.fixture(scope="module")
def expected(images, detector):
    """What the detector finds in each alone, from 0.2 on."""
    found = [detector.detect([pixels])[0].to_dict() for pixels, _ in images]
    for one in found:
        one["detections"] = [each for each in one["detections"] if each["score"] >= 0.2]
    for place, one in enumerate(found):
        assert one["detections"]
        for other in found[:place]:  # an answer to another image is seen to be wrong
            with pytest.raises(AssertionError):
                little_service.assert_same(one, other)
    return found


def test_an_image_is_answered_as_the_detector_answers(service, images, expected):
    answer = service.detect(images[0][1], _QUERY)
    assert answer.status == 200
    assert answer.json["model"] == "tiny"
    (found,) = answer.json["images"]
    little_service.assert_same(found, expected[0])


def test_a_request_of_several_images_is_answered_in_their_order(service, images, expected):
    body, headers = little_service.form([(f"ä {place}.png", images[place][1]) for place in range(5)])
    answer = service.ask(f"/v1/detect{_QUERY}", body, headers)
    assert answer.status == 200
    assert [found["name"] for found in answer.json["images"]] == [f"ä {place}.png" for place in range(5)]
    for found, wanted in zip(answer.json["images"], expected, strict=False):
        little_service.assert_same(found, wanted)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        pytest.param("C:\\photos\\a.png", "a.png", id="of Internet Explorer"),
        pytest.param("say %22cheese%22.png", 'say "cheese".png', id="quotes, as browsers write them"),
    ],
)
def test_a_form_names_its_files_as_browsers_do(service, images, written, name):
    answer = service.ask("/v1/detect", *little_service.form([(written, images[0][1])]))
    assert [found["name"] for found in answer.json["images"]] == [name]


def test_threshold_and_classes_choose_what_is_shown(service, images):
    everything = service.detect(images[1][1], "?score_threshold=0").json["images"][0]["detections"]
    classes = {each["class"] for each in everything}
    assert {"cat", "guinea pig"} <= classes
    scores = [each["score"] for each in everything]
    gaps = [first - second for first, second in itertools.pairwise(scores[:20])]
    place = gaps.index(max(gaps))  # rounding moves no score over a threshold in the middle
    middle = (scores[place] + scores[place + 1]) / 2
    above = service.detect(images[1][1], f"?score_threshold={middle}").json["images"][0]["detections"]
    assert above == everything[: place + 1]
    for query in ("classes=cat,guinea%20pig", "classes=cat&classes=guinea+pig"):
        some = service.detect(images[1][1], f"?score_threshold=0&{query}").json["images"][0]["detections"]
        assert some == [each for each in everything if each["class"] != "dog"]


def test_without_a_threshold_the_service_s_own_counts(service, images):
    assert service.detect(images[0][1]).json == service.detect(images[0][1], "?score_threshold=0.3").json


def test_every_answer_has_headers_for_browsers_and_names_no_path(service, images, weights_file):
    asked = [service.ask(path) for path in ("/", "/page.js", "/docs", "/openapi.json", "/healthz", "/metrics", "/x")]
    asked += [service.detect(images[0][1]), service.detect(b"nothing"), service.ask("/v1/detect")]
    assert [answer.status for answer in asked] == [200] * 6 + [404, 200, 415, 405]
    for answer in asked:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        for part in (str(weights_file.parent), "site-packages", "Traceback", "/src/"):
            assert part not in answer.body.decode()


def test_metrics_count_requests_images_and_batches(service, images):
    def read():
        text = service.ask("/metrics").body.decode()
        return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}

    before = read()
    body, headers = little_service.form([(f"{place}.png", images[place][1]) for place in range(3)])
    assert service.ask("/v1/detect", body, headers).status == 200
    after = read()
    assert after["efficientdet_images_total"] - before["efficientdet_images_total"] == 3
    name = 'efficientdet_requests_total{route="/v1/detect",status="200"}'
    assert after[name] - before[name] == 1
    assert after["efficientdet_waiting_images"] == after["efficientdet_image_bytes"] == 0
    assert after["process_resident_memory_bytes"] > 1e6


def test_the_openapi_document_describes_what_is_answered(service, images):
    document = service.ask("/openapi.json").json
    schemas = document["components"]["schemas"]

    def check(value, schema):
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
        assert isinstance(value, kinds[schema["type"]])
        if schema["type"] == "object":
            assert set(value) == set(schema["properties"])
            for name, inner in schema["properties"].items():
                check(value[name], inner)
        for each in value if schema["type"] == "array" else ():
            check(each, schema["items"])

    for path, method in (("/v1/detect", "post"), ("/v1/model", "get"), ("/healthz", "get")):
        answer = service.detect(images[0][1]) if method == "post" else service.ask(path)
        check(answer.json, document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"])
    problem = document["paths"]["/v1/detect"]["post"]["responses"]["415"]["content"]["application/problem+json"]
    check(service.detect(b"nothing").json, problem["schema"])


def test_the_documentation_needs_nothing_from_elsewhere(service):
    for path in ("/", "/docs", "/page.js", "/page.css"):
        text = service.ask(path).body.decode()
        assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org|HOST)[a-z0-9]", text.replace("// ", ""))
    page = service.ask("/docs").body.decode()
    assert "<script" not in page
    assert "score_threshold" in page


def test_200_clients_at_once_all_get_their_own_answer(service, images, expected):
    """Half of them with one connection a request, all at the same moment."""
    together = threading.Barrier(200)

    def client(number):
        place = number % len(images)
        together.wait()
        answer = service.detect(images[place][1], _QUERY)
        return place, answer

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(client, range(200)))
    assert time.monotonic() - began < 60
    assert {answer.status for _, answer in answers} == {200}
    for place, answer in answers:
        little_service.assert_same(answer.json["images"][0], expected[place])
    text = service.ask("/metrics").body.decode()
    batches, alone = (
        float(re.search(rf"^efficientdet_batch_images_{name} (\S+)$", text, re.MULTILINE)[1])
        for name in ("count", 'bucket{le="1.0"}')
    )
    assert batches - alone > 20, "clients share batches"


@pytest.mark.slow
def test_a_full_queue_refuses_and_a_stop_answers_what_was_accepted(weights_file, tmp_path, images, expected):
    """200 clients come again after 503, as Retry-After says; then some more while the service is told to stop."""
    with little_service.run(weights_file, tmp_path, "--limits.max-waiting", "20") as service:
        retries = []

        def client(number):
            place = number % len(images)
            for _ in range(50):
                answer = service.detect(images[place][1], _QUERY)
                if answer.status != 503:
                    return place, answer
                assert answer.headers["retry-after"].isdecimal()
                assert answer.json["detail"] == "Too many images are waiting; try again later."
                retries.append(number)
                time.sleep(0.2)
            raise AssertionError("never accepted")

        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(client, range(200)))
        assert retries
        for place, answer in answers:
            assert answer.status == 200
            little_service.assert_same(answer.json["images"][0], expected[place])

        head = b"POST /v1/detect%s HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
        connections = []
        for _, content in images[:12]:
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
            connection.sendall(head % (_QUERY.encode(), len(content)) + content[:-1])
            connections.append(connection)
        _wait_until(lambda: "efficientdet_waiting_images 12.0" in _lines(service))
        service.process.send_signal(signal.SIGTERM)
        _wait_until(lambda: _is_refused(service.port))
        for connection, (_, content) in zip(connections, images, strict=False):
            connection.sendall(content[-1:])  # accepted before the signal, complete only now
        for connection, wanted in zip(connections, expected, strict=False):
            with connection, connection.makefile("rb") as stream:
                head, _, body = stream.read().partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                little_service.assert_same(json.loads(body)["images"][0], wanted)
        assert service.process.wait(30) == 0
        assert "Stopped after" in service.log.read_text()


def _lines(service):
    return service.ask("/metrics").body.decode().splitlines()


def _wait_until(is_so, seconds=20):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
