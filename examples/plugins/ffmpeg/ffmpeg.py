"""Becomes ffmpeg: the one on the PATH, or the one that the wheel imageio-ffmpeg brings."""
import os
import shutil
import sys


def program():
    """Where ffmpeg is; None where there is none."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: a wheel without the program
        return None


def main(arguments):
    path = program()
    if path is None:
        print("there is no ffmpeg on the PATH, and imageio-ffmpeg is not installed", file=sys.stderr)
        return 127
    os.execv(path, [path, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
