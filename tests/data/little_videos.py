"""Short videos that tests write: a bright square on a dark ground, which moves."""

from fractions import Fraction

import av
import numpy as np


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
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if ticks is not None:
                picture.pts, picture.time_base = ticks[number], Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return frames
