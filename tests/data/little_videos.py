"""Short videos that tests write: a bright square on a dark ground, which moves; and a network camera."""

import contextlib
import io
import socket
import threading
import time
from fractions import Fraction

import av
import numpy as np
from PIL import Image


def write(path, count=12, *, size=(48, 64), rate=Fraction(10), codec="libx264", ticks=None, rotation=0, container=None):
    """Writes a video and returns its frames.

    Args:
        path: the file; its suffix says the container.
        count: frames.
        size: height and width, px.
        rate: frames/s.
        codec: FFmpeg's name.
        ticks: time of each frame, ms; none: at the rate.
        rotation: degrees counterclockwise that players turn it by.
        container: FFmpeg's name; none: as the suffix says.

    Returns:
        uint8[count, *size, 3], before encoding.
    """
    frames = np.full((count, *size, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        left = 2 * number
        frame[8:24, left : left + 16] = (220, 60, 60)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if ticks is not None:
                image.pts, image.time_base = ticks[number], Fraction(1, 1000)
            file.mux(stream.encode(image))
        file.mux(stream.encode(None))
    return frames


@contextlib.contextmanager
def network_camera(size=(48, 64), seconds=0.02):
    """Runs a camera that sends JPEG after JPEG over HTTP while the block runs, and gives its address."""
    is_over = threading.Event()

    def send(connection):
        with contextlib.suppress(OSError), connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=limit\r\n\r\n")
            for number in range(10_000):
                buffer = io.BytesIO()
                Image.new("RGB", (size[1], size[0]), (number % 250, 60, 60)).save(buffer, "JPEG")
                head = b"--limit\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % buffer.tell()
                connection.sendall(head + buffer.getvalue() + b"\r\n")
                if is_over.wait(seconds):
                    return

    def listen():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=send, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/live.mjpg"
        is_over.set()
        time.sleep(2 * seconds)
