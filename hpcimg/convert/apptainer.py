"""Where mksquashfs reads no archives: `apptainer build`, which unpacks the image on disk.

squashfs-tools of RHEL 9 and older are such. Half as fast, and it needs room for
the unpacked files in the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator

from hpcimg.convert import programs
from hpcimg.convert.squashfs import explain, options
from hpcimg.errors import Damaged

_CHUNK = 1 << 20
_OCI = "application/vnd.oci.image"
_PACKING = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}


def build(
    program: str,
    layers: tuple[int, ...],
    config: str,
    output: int,
    *,
    folder: str,
    compression: str,
    uri: str,
) -> None:
    """Fill `output` with the SIF that Apptainer or SingularityCE makes.

    What is in the folder afterwards is left to its owner. Raises HpcimgError.
    """
    _write_layout(f"{folder}/oci", layers, config)
    made = f"{folder}/made.sif"
    environment = programs.environment(
        HOME=folder,
        **{
            f"{name}_{what}": folder
            for name in ("APPTAINER", "SINGULARITY")
            for what in ("TMPDIR", "CACHEDIR")
        },
    )
    argv = [program, "--silent", "build", "--disable-cache"]
    # From Apptainer 1.4 on; without it, the image is packed as the site's default is.
    if "--mksquashfs-args" in _help(program, environment):
        argv += ["--mksquashfs-args", " ".join(options(compression))]
    with programs.listen() as words:
        done = subprocess.run(
            [*argv, made, f"oci:{folder}/oci"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            cwd=folder,
            env=environment,
            preexec_fn=programs.die_with_parent(),
            check=False,
        )
        if done.returncode:
            said = programs.last_words(words)
            if "while unpacking" in said:
                raise Damaged(f"{uri} cannot be unpacked", why=said)
            raise explain(program, done.returncode, said, uri)
    with open(made, "rb") as file:
        while os.sendfile(output, file.fileno(), None, _CHUNK):
            pass
    os.unlink(made)


def _help(program: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [program, "build", "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return done.stdout


def _write_layout(folder: str, layers: tuple[int, ...], config: str) -> None:
    """Write the layers as an OCI image layout of one image.

    As copies: what Apptainer starts does not inherit open files.
    """
    blobs = f"{folder}/blobs/sha256"
    os.makedirs(blobs)
    described = [
        _blob(blobs, _read(layer), f"layer.v1.tar{_PACKING.get(os.pread(layer, 2, 0), '')}")
        for layer in layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _blob(blobs, iter([config.encode()]), "config.v1+json"),
        "layers": described,
    }
    index = _blob(blobs, iter([json.dumps(manifest).encode()]), "manifest.v1+json")
    with open(f"{folder}/oci-layout", "w", encoding="ascii") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    with open(f"{folder}/index.json", "w", encoding="ascii") as file:
        json.dump({"schemaVersion": 2, "manifests": [index]}, file)


def _read(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while data := os.pread(descriptor, _CHUNK, offset):
        offset += len(data)
        yield data


def _blob(folder: str, content: Iterator[bytes], kind: str) -> dict[str, object]:
    digest, size = hashlib.sha256(), 0
    with open(f"{folder}/new", "wb") as file:
        for data in content:
            digest.update(data)
            size += file.write(data)
    os.rename(f"{folder}/new", f"{folder}/{digest.hexdigest()}")
    return {
        "mediaType": f"{_OCI}.{kind}",
        "digest": f"sha256:{digest.hexdigest()}",
        "size": size,
    }
