"""Hostile uploads: each is refused, memory stays bounded, and the service lives."""

import concurrent.futures
import socket
import time

import hostile
import little_service
import pytest

_IMAGES, _FORMS, _REQUESTS, _RAW = hostile.images(), hostile.forms(), hostile.requests(), hostile.raw()
_MOST_MEMORY = 450  # MB above what the service has at rest: image-memory-mb, upload-memory-mb, and some


@pytest.fixture(scope="module")
def bounded(service):
    """The service, whose memory is measured over all tests of this module, and which works when they end."""
    good = little_service.encode(little_service.image(0))
    expected = service.detect(good).json
    service.forget_peak()
    before = service.memory()
    yield service
    assert service.memory("VmHWM") - before < _MOST_MEMORY
    assert service.process.poll() is None
    assert service.detect(good).json == expected
    text = service.ask("/metrics").body.decode()
    for name in ("waiting_images", "upload_bytes", "image_bytes"):
        assert f"efficientdet_{name} 0.0\n" in text, "nothing is counted that is not there"
    assert "Traceback" not in service.log.read_text()


def _check(answer, statuses):
    assert answer.status in statuses
    if answer.status != 200:
        assert answer.json["status"] == answer.status
        assert len(answer.json["detail"]) < 600


@pytest.mark.parametrize("name", _IMAGES)
def test_a_hostile_image_is_refused_or_does_no_harm(bounded, name):
    content, statuses = _IMAGES[name]
    _check(bounded.detect(content), statuses)


@pytest.mark.parametrize("name", _FORMS)
def test_a_hostile_form_is_refused(bounded, name):
    body, headers, statuses = _FORMS[name]
    _check(bounded.ask("/v1/detect", body, headers), statuses)


@pytest.mark.parametrize("name", _REQUESTS)
def test_a_hostile_request_is_refused(bounded, name):
    path, body, headers, statuses = _REQUESTS[name]
    _check(bounded.ask(path, body, headers), statuses)


def test_what_no_client_library_sends_is_refused(bounded):
    """All at once, since some wait until the service has lost its patience."""
    with concurrent.futures.ThreadPoolExecutor(len(_RAW)) as pool:
        answers = dict(zip(_RAW, pool.map(lambda each: bounded.send_raw(each[0]), _RAW.values()), strict=True))
    for name, (_, statuses) in _RAW.items():
        assert answers[name][:13] in {b"HTTP/1.1 %d " % status for status in statuses}, name


def test_all_of_them_at_once_are_refused_within_the_memory(bounded):
    """Each hostile image four times, thirty-two at a time, with good ones between them."""
    good = little_service.encode(little_service.image(0))
    asked = [pair for pair in _IMAGES.values() for _ in range(4)]
    asked = [each for pair in asked for each in (pair, (good, {200}))]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda each: bounded.detect(each[0], timeout=120), asked))
    for answer, (_, statuses) in zip(answers, asked, strict=True):
        assert answer.status in statuses


def test_large_images_wait_for_memory(bounded):
    """Ten times what may be decoded at once."""
    pixels = little_service.image(0, (3000, 3900))  # 11.7 million px: 281 of 300 MB while it is decoded
    content = little_service.encode(pixels, "JPEG")
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(bounded.detect, [content] * 10))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1


def test_slow_clients_hold_nobody_up(bounded):
    """Fifty that send a byte now and then; a good request is answered at once, and they are sent away."""
    head = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nContent-Type: image/png\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", bounded.port), timeout=20) for _ in range(50)]
    for connection in slow:
        connection.sendall(head)
    began = time.monotonic()
    assert bounded.detect(little_service.encode(little_service.image(1))).status == 200
    assert time.monotonic() - began < 5
    for connection in slow:
        with connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_goes_away_leaves_nothing_behind(bounded):
    content = little_service.encode(little_service.image(2, (2000, 2000)))
    head = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(
        content
    )
    for share in (0, 0.5, 1):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", bounded.port), timeout=20) as connection:
                connection.sendall(head + content[: int(share * len(content))])
    until = time.monotonic() + 20
    while "efficientdet_waiting_images 0.0\n" not in bounded.ask("/metrics").body.decode():
        assert time.monotonic() < until
        time.sleep(0.1)
