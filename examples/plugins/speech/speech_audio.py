"""Recordings to what the recogniser wants: mono, 16 bits, 16 kHz. Standard library only."""
from __future__ import annotations

import array
import base64
import binascii
import io
import os
import sys
import wave
from typing import Any, List

from cjmworker import UserInputError, job_dir

RATE = 16000
MAX_SECONDS = 4 * 3600


def load(audio: Any) -> bytes:
    """PCM of a recording: a path (absolute, or inside the job's directory), or the
    bytes themselves as ``{"encoding": "base64", "data": "…"}``."""
    if isinstance(audio, dict):
        return _decode(_from_base64(audio), "the recording")
    if not isinstance(audio, str) or not audio:
        raise UserInputError("audio must be a path or an object with base64 data", fields=["audio"])
    path = audio if os.path.isabs(audio) else os.path.join(job_dir() or os.getcwd(), audio)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as exc:
        raise UserInputError("cannot read %s: %s" % (audio, exc.strerror), fields=["audio"]) from exc
    if path.endswith(".raw"):  # by convention already what we want
        return data[: len(data) & ~1]
    return _decode(data, audio)


def _from_base64(audio: dict) -> bytes:
    try:
        return base64.b64decode(str(audio["data"]), validate=True)
    except (KeyError, binascii.Error) as exc:
        raise UserInputError("audio.data is no base64: %s" % exc, fields=["audio"]) from exc


def _decode(data: bytes, name: str) -> bytes:
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, channels, width, count = file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()
            frames = file.readframes(count)
    except (wave.Error, EOFError) as exc:
        raise UserInputError("%s is no WAV file with PCM samples: %s" % (name, exc), fields=["audio"]) from exc
    if rate <= 0 or channels <= 0 or width not in (1, 2, 3, 4):
        raise UserInputError("%s has an unusual format (%d Hz, %d channels)" % (name, rate, channels), fields=["audio"])
    if len(frames) > MAX_SECONDS * rate * channels * width:
        raise UserInputError("%s is longer than %d hours" % (name, MAX_SECONDS // 3600), fields=["audio"])
    if (rate, channels, width) == (RATE, 1, 2):
        return frames
    return _to_bytes(resample(mix(samples(frames, width), channels), rate))


def samples(frames: bytes, width: int) -> "array.array[int]":
    """Samples as 16-bit numbers; WAV is little-endian, and unsigned when it has 8 bits."""
    found = array.array("h")
    if width == 1:
        found.extend((byte - 128) << 8 for byte in frames)
        return found
    # The two most significant bytes are the last ones.
    top = bytearray(len(frames) // width * 2)
    top[0::2] = frames[width - 2 :: width][: len(top) // 2]
    top[1::2] = frames[width - 1 :: width][: len(top) // 2]
    found.frombytes(bytes(top))
    if sys.byteorder == "big":
        found.byteswap()
    return found


def mix(values: "array.array[int]", channels: int) -> "array.array[int]":
    if channels == 1:
        return values
    parts: List["array.array[int]"] = [values[n::channels] for n in range(channels)]
    return array.array("h", (sum(group) // channels for group in zip(*parts)))


def resample(values: "array.array[int]", rate: int) -> "array.array[int]":
    """Linear interpolation, after averaging when the rate goes down: good enough for
    speech, and it needs no library."""
    if rate == RATE or not values:
        return values
    step = rate / RATE
    span = max(1, int(step))
    if span > 1:
        total, sums = 0, [0]
        for value in values:
            total += value
            sums.append(total)
        values = array.array("h", ((sums[min(len(sums) - 1, n + span)] - sums[n]) // span for n in range(len(values))))
    count = int(len(values) / step)
    last = len(values) - 1
    out = array.array("h", bytes(2 * count))
    for n in range(count):
        at = n * step
        left = int(at)
        right = left + 1 if left < last else last
        out[n] = int(values[left] + (values[right] - values[left]) * (at - left))
    return out


def _to_bytes(values: "array.array[int]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
