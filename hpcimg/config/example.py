"""The example of a configuration file: every key with its default, and what it is for."""

from __future__ import annotations

from hpcimg.config.keys import KEYS

_HEAD = """\
# hpcimg.conf: every key with its default. Nothing here has to be set.
#
# Lines that begin with # and a key can be uncommented as they are. The same may
# stand in /etc/hpcimg/conf.d/*.conf, whose files are read later and win.
# `hpcimg config` checks it all; hpcimg.conf(5) says more.
"""
_NAMED = """
# One section for each registry that needs one, with its port where references have it.
# insecure: plain http is spoken to it. mirrors: asked before it, HOST[:PORT][/PREFIX].
# auth_file: the site's login, in the form of docker's config.json; shared: what is
# fetched with it is for all users, or else for the one who asked.
#   [registry registry.example.org:5000]
#   insecure = yes
#   mirrors = cache.example.org:5000 harbor.example.org/proxy
#   auth_file = /etc/hpcimg/registry.json
#   shared = yes

# A static registry, web pages laid out as registry-org does it, under a scheme of the site's.
#   [static pages]
#   url = https://images.example.org/registry

# Asked before a web server, an S3 endpoint, a library: `url` stands in the place of the
# address `of` and all that begins with it.
#   [mirror images]
#   of = https://images.example.org
#   url = http://cache.example.org:8080/images.example.org

# container:samtools in a job stands for the address, container:bio/X for the one with /X.
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
        # A value of the key stays what it is to be written, as in "drain: ...".
        word = key.about.partition(" ")[0]
        is_value = word.endswith(":") or word.rstrip(",;") == key.default
        about = key.about if is_value else key.about[:1].upper() + key.about[1:]
        lines.append(f"# {about}.\n" + f"#{key.name} = {key.default}".rstrip() + "\n")
    return "".join([*lines, _NAMED])
