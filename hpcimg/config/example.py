"""The example configuration file: every key with its default and a description."""

from __future__ import annotations

from hpcimg.config.keys import KEYS

_HEAD = """\
# hpcimg.conf: every key with its default. Nothing here has to be set.
#
# To set a key, uncomment its line. Files in /etc/hpcimg/conf.d/*.conf have the same
# format; they are read later and win. `hpcimg config` checks all of them; see
# hpcimg.conf(5).
"""
_NAMED = """
# One section per registry that needs one, with its port if references have one.
# insecure: use plain http. mirrors: tried first, HOST[:PORT][/PREFIX].
# auth_file: the site's login, in the format of docker's config.json. shared: images
# fetched with it are shared by all users, instead of private to the one who asked.
#   [registry registry.example.org:5000]
#   insecure = yes
#   mirrors = cache.example.org:5000 harbor.example.org/proxy
#   auth_file = /etc/hpcimg/registry.json
#   shared = yes

# A static registry, web pages laid out like registry-org, under a scheme of its own.
#   [static pages]
#   url = https://images.example.org/registry

# Tried before a web server, an S3 endpoint or a library: `url` replaces the beginning
# `of` of their addresses.
#   [mirror images]
#   of = https://images.example.org
#   url = http://cache.example.org:8080/images.example.org

# container:samtools in a job means this address, container:bio/X the one with /X.
#   [alias]
#   samtools = https://images.example.org/samtools.sif
#   bio/* = oras://registry.example.org/bio/*
"""


def text() -> str:
    """Return the text of `etc/hpcimg.conf.example`."""
    lines = [_HEAD]
    section = ""
    for key in KEYS:
        if key.section != section:
            section = key.section
            lines.append(f"\n[{section}]\n")
        # Keep the case of a value that the description begins with, as in "drain: ...".
        word = key.about.partition(" ")[0]
        is_value = word.endswith(":") or word.rstrip(",;") == key.default
        about = key.about if is_value else key.about[:1].upper() + key.about[1:]
        lines.append(f"# {about}.\n" + f"#{key.name} = {key.default}".rstrip() + "\n")
    return "".join([*lines, _NAMED])
