"""
Read and write damaged image files, and report what no file may do.

    python tests/fuzz.py --count 10000 --seed 1

Each mutant of a small image is read by a process with limits of time and memory. It may be refused with one sentence
or be read with notes. It may not crash, hang, take much memory, print anything, change its file or spoil the next.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pillow_heif
import pyvips
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from process_memory import peak_megabytes
from raw_files import expose, scene, write_dng


SECONDS, MEGABYTES = 10, 1000
BATCH = 250  # mutants a process


def make_seeds() -> dict[str, bytes]:
    """Return small sound files of all formats with all kinds of metadata, {extension and number: bytes}."""
    rng = np.random.default_rng(0)
    pixels = (np.mgrid[0:200:24j, 0:200:32j].sum(0)[..., None] / 2 + rng.normal(20, 5, (24, 32, 4))).clip(0, 255)
    colour, alpha = Image.fromarray(pixels[..., :3].astype(np.uint8)), Image.fromarray(pixels.astype(np.uint8))
    wide = pyvips.Image.new_from_array(pixels[..., :3].astype(np.uint16) * 257).copy(interpretation="rgb16")
    profile = wide.icc_transform("p3").get("icc-profile-data")
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    exif.get_ifd(0x8769)[0x8827] = 3200
    xmp, text = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>', PngInfo()
    text.add_text("Title", "Café", zip=True)
    iptc = b"8BIM\x04\x04\0\0\0\0\0\x06\x1c\x02\x78\0\1a"
    text.add_text("Raw profile type iptc", f"\niptc\n{len(iptc)}\n{iptc.hex()}\n", zip=True)
    hdr = pyvips.Image.new_from_array(pixels[..., :3] / 64).cast("float").copy(interpretation="scrgb")

    seeds = {}
    with tempfile.TemporaryDirectory() as folder:

        def save(name, image, **options):
            path = Path(folder, name)
            image.save(path, **options) if isinstance(image, Image.Image) else image(str(path), **options)
            seeds[f"{len(seeds)}.{name.split('.')[-1]}"] = path.read_bytes()

        save("a.jpg", colour, exif=exif, xmp=xmp, icc_profile=profile)
        save("a.jpg", colour, progressive=True)
        save("a.jpg", alpha.convert("CMYK"))
        save("a.jpg", hdr.uhdrsave, keep="none")
        save("a.jpg", colour, format="MPO", save_all=True, append_images=[colour], exif=exif, comment=b"a comment")
        save("a.png", alpha, exif=exif, icc_profile=profile, pnginfo=text)
        text.add(b"gAMA", (100_000).to_bytes(4, "big"))
        save("a.png", colour, pnginfo=text)
        save("a.png", colour.quantize(16), transparency=0)
        save("a.png", wide.pngsave, interlace=True)
        save("a.tif", colour, tiffinfo={270: "a description", 33723: b"\x1c\x02\x78\0\1a"}, icc_profile=profile)
        save("a.tif", colour, compression="tiff_lzw", big_tiff=True)
        save("a.tif", wide.tiffsave, tile=True, tile_width=16, tile_height=16, compression="deflate")
        save("a.tif", alpha.convert("CMYK"), compression="packbits")
        save("a.tif", colour, compression="jpeg")
        thumbnail = colour.resize((8, 6))
        thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
        save("a.tif", colour, save_all=True, append_images=[thumbnail])
        save("a.tif", pyvips.Image.new_from_array(pixels).cast("uchar").tiffsave, premultiply=True)
        save("a.webp", colour, exif=exif, xmp=xmp, icc_profile=profile)
        save("a.webp", alpha, lossless=True)
        save("a.avif", wide.heifsave, compression="av1", bitdepth=10)
        save("a.avif", alpha, exif=exif, icc_profile=profile, quality=50)
        save("a.heic", pillow_heif.from_pillow(alpha).save, exif=exif.tobytes())
        save("a.heic", pillow_heif.from_bytes("RGB;16", (32, 24), wide.write_to_memory()).save)
        save("a.dng", lambda path: write_dng(path, expose(scene(24, 32)), orientation=6))
    return seeds


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to eight places; one in four is damaged where headers are."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) if rng.random() < 0.75 else min(len(data), 300))
        width = rng.choice((1, 2, 4))
        kind = rng.randrange(8)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind <= 3:
            number = rng.choice((0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, rng.getrandbits(32)))
            data[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(("big", "little")))
        elif kind == 4:
            data[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        elif kind == 5:
            source = rng.randrange(len(data))
            data[at:at] = data[source : source + rng.randrange(1, 512)]
        elif kind == 6:
            source = rng.randrange(len(other))
            data[at : at + 64] = other[source : source + 64]
        elif rng.random() < 0.3 and at:
            del data[at:]
    return bytes(data)


def mutants(seed: int, start: int, count: int):
    seeds = make_seeds()
    for number in range(start, start + count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(list(seeds))
        yield number, f"{number}.{name.split('.')[1]}", mutate(seeds[name], rng.choice(list(seeds.values())), rng)


def work(folder: Path, seed: int, start: int, count: int) -> None:
    """Read and write mutants, and print as a line of JSON what became of each."""
    from gdd_diffusers.files import ImageFileError, output_suffix, read_image, write_image

    sound = folder / "sound.png"
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(sound)
    expected = read_image(sound).pixels.tobytes()
    for number, name, data in mutants(seed, start, count):
        print(json.dumps({"number": number, "name": name}), flush=True)
        path, problem, refused = folder / name, None, False
        path.write_bytes(data)
        begin = time.process_time()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30 * SECONDS)  # of the clock, which other processes slow down
        try:
            image = read_image(path)
            for extension in (output_suffix(path), (".jpg", ".png", ".tif", ".webp")[number % 4]):
                write_image(folder / f"{number}-out{extension}", image.pixels, like=image, overwrite=True)
                read_image(folder / f"{number}-out{extension}")
        except ImageFileError as error:
            refused = True
            if not str(error).isprintable():
                problem = f"not one sentence: {error}"
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        seconds, megabytes = time.process_time() - begin, peak_megabytes()
        if seconds > SECONDS:
            problem = f"took {seconds:.0f} s"
        elif megabytes > MEGABYTES:
            problem = f"took {megabytes:.0f} MB"
        elif path.read_bytes() != data:
            problem = "changed its file"
        elif read_image(sound).pixels.tobytes() != expected:
            problem = "spoiled the next file"
        print(json.dumps({"number": number, "refused": refused, "problem": problem}), flush=True)
        for file in folder.glob(f"{number}*"):
            file.unlink()
        if problem and megabytes > MEGABYTES:
            break


def fuzz(count: int, seed: int) -> tuple[int, list[str]]:
    """Return how many mutants were read, and a line for each that did what no file may do."""
    read, problems, number = 0, [], 0
    while number < count:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--worker", folder, "--seed", seed, "--start", number]
            command += ["--count", min(BATCH, count - number)]
            run = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
            lines = [json.loads(line) for line in run.stdout.splitlines()]
            for line in lines:
                if "refused" in line:
                    read += not line["refused"]
                    if line["problem"]:
                        problems.append(f"seed {seed}, mutant {line['number']}: {line['problem']}")
            if not lines or (run.returncode and "refused" in lines[-1]):
                return read, [*problems, f"the worker failed: {run.stderr[-1000:]}"]
            if run.stderr:
                problems.append(f"seed {seed}, mutants {number} to {lines[-1]['number']}: printed {run.stderr[:500]}")
            if run.returncode:
                problems.append(f"seed {seed}, mutant {lines[-1]['number']}: the process died of {-run.returncode}")
            number = lines[-1]["number"] + 1
    return read, problems


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--save", type=int, metavar="NUMBER", help="Write this mutant into the folder and stop.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.save is not None:
        _, name, data = next(mutants(args.seed, args.save, 1))
        Path(name).write_bytes(data)
    elif args.worker:
        work(args.worker, args.seed, args.start, args.count)
    else:
        begin = time.monotonic()
        read, problems = fuzz(args.count, args.seed)
        print(*problems, sep="\n")
        seconds = time.monotonic() - begin
        print(f"seed {args.seed}: {args.count} mutants in {seconds:.0f} s, {read} read, {len(problems)} problems")
        sys.exit(bool(problems))


if __name__ == "__main__":
    main()
