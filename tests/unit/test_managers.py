"""The names under which workflow managers look for images; `make test-managers` asks them."""

from __future__ import annotations

import pytest

from hpcimg.managers import MANAGERS, names

SAMTOOLS = "docker://quay.io/bio/my_samtools:1.19--h5_0"


@pytest.mark.parametrize(
    ("manager", "text", "found"),
    [
        ("snakemake", SAMTOOLS, "ac56b4fbdbb35ab3d9a61bf8648c58e9.simg"),
        ("nextflow", SAMTOOLS, "quay.io-bio-my_samtools-1.19--h5_0.img"),
        ("nextflow", "https://h.example.org/x/y.sif", "h.example.org-x-y.sif"),
        ("nextflow", "oras://h.example.org/x.sif:1", "h.example.org-x-1.sif"),
        ("cwltool", SAMTOOLS, "quay.io_s_bio_s_my___samtools:1.19--h5___0.sif"),
        ("cwltool", "docker://quay.io/bio/x", "quay.io_s_bio_s_x:latest.sif"),
        ("miniwdl", SAMTOOLS, "docker___quay.io_bio_my_samtools_1.19--h5_0.sif"),
    ],
)
def test_names(manager: str, text: str, found: str) -> None:
    assert names(manager, [text]) == [found]


def test_an_image_on_docker_hub_is_found_by_all_of_its_names() -> None:
    found = names("cwltool", ["docker://ubuntu:22.04", "docker://docker.io/library/ubuntu:22.04"])
    assert found == [
        "ubuntu:22.04.sif", "docker.io_s_library_s_ubuntu:22.04.sif", "library_s_ubuntu:22.04.sif",
    ]  # fmt: skip


def test_paths_are_taken_as_they_are() -> None:
    assert [names(manager, ["/data/x.sif", "file:///data/x.sif"]) for manager in MANAGERS] == 4 * [
        []
    ]


def test_what_can_be_no_file_gets_no_name() -> None:
    assert names("nextflow", [f"docker://h.example.org/{'x' * 300}"]) == []


def test_apptainers_own_cache_is_nobodys() -> None:
    variables = [variable for each in MANAGERS.values() for variable in each.variables]
    assert "APPTAINER_CACHEDIR" not in variables
