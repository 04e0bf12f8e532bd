"""Hard cuts, where one scene of a film ends and the next begins: exactly, or as a guess that costs nothing."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np

from vidlit.errors import UserError
from vidlit.video.frames import VideoError, read_frames
from vidlit.video.repeats.excerpts import Timeline

_HEIGHT = 64  # pixels: on 110 real films as good as the full size, which is slower
_JUMP = 24  # bits of 64; unrelated pictures differ by about 32
_JUMP_RATIO = 3.0  # times the frames around it: on 110 real films one of 1,200 steps within a scene is that large
_AROUND = 2  # steps before and after
_MOST_SECONDS = 0.5  # between two frames: beyond it, hashes differ within a scene, too


def require_scene_detection() -> None:
    """Refuse to look for cuts where the package for it is missing.

    Raises:
        UserError: with the line that installs it.
    """
    if importlib.util.find_spec("scenedetect") is None or importlib.util.find_spec("cv2") is None:
        raise UserError(
            "data.cutting.mode is scenes, which needs PySceneDetect: pip install 'vidlit[scenes]', or choose "
            "another mode, such as chunk."
        )


def find_cuts(path: Path, width: int, height: int) -> list[float]:
    """Seconds at which a new scene begins, by PySceneDetect's adaptive detector; decodes the whole film, small.

    The detector sees pictures that are decoded here: it never opens the file.

    Args:
        path: a video.
        width: displayed width in pixels.
        height: displayed height in pixels.

    Returns:
        Times of first frames of scenes after the first one, ascending. A film that is damaged somewhere is searched up
        to there.

    Raises:
        VideoError: the system failed while the file was read.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(min_scene_len=1)  # what is too short for a clip is for the plan to say
    times: list[float] = []
    cuts: list[float] = []
    try:
        for time, frame in read_frames(path, _HEIGHT, int(np.clip(round(_HEIGHT * width / height), 16, 256))):
            times.append(time)
            # Frames are counted, at whatever rate: of a variable one the detector knows nothing.
            found = detector.process_frame(FrameTimecode(len(times) - 1, 25.0), np.ascontiguousarray(frame[..., ::-1]))
            cuts += [times[cut.frame_num] for cut in found]
    except VideoError as error:
        if error.transient:
            raise
    return cuts


def probable_cuts(timeline: Timeline) -> list[tuple[float, float]]:
    """Where perceptual hashes of a film's beginning jump: seconds of the frames before and after each likely cut.

    Args:
        timeline: of a :class:`~vidlit.video.repeats.duplicates.Fingerprint`.
    """
    known = [(time, int(text, 16)) for time, text in timeline if text is not None]
    steps = [(one[1] ^ other[1]).bit_count() for one, other in itertools.pairwise(known)]
    cuts = []
    for place, step in enumerate(steps):
        before, after = known[place][0], known[place + 1][0]
        around = steps[max(0, place - _AROUND) : place] + steps[place + 1 : place + 1 + _AROUND]
        if step >= _JUMP and after - before <= _MOST_SECONDS and around and step >= _JUMP_RATIO * np.mean(around):
            cuts.append((before, after))
    return cuts
