"""The keys of the configuration: how each is read, its default, and what it is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hpcimg.config import files as conffiles
from hpcimg.config import values as read
from hpcimg.config.values import Size
from hpcimg.units import parse_duration, parse_percent, parse_size


@dataclasses.dataclass(frozen=True)
class Registry:
    """What the site says about one registry or web host.

    `auth_file` holds the site's credentials for it, "" for none; `shared` says
    whether an image fetched with them is for all, or for who asked for it.
    `mirrors` are asked before it, each `HOST[:PORT][/PREFIX]`. None is what
    was not said: there registries.conf has its say.
    """

    insecure: bool | None = None
    auth_file: str = ""
    shared: bool = False
    mirrors: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Static:
    """A static registry under a name of the site's: the address of its web pages."""

    url: str = ""


@dataclasses.dataclass(frozen=True)
class WebMirror:
    """What is asked before a web server: `url` stands in the place of the address `of`."""

    of: str = ""
    url: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """All values, ready to use. Times are in seconds."""

    cache_path: str
    max_size: Size
    high_watermark: float
    low_watermark: float
    min_free: Size
    max_images: int
    min_age_s: float
    state_path: str
    deadline_s: float
    tag_ttl_s: float
    error_ttl_s: float
    connect_timeout_s: float
    stall_timeout_s: float
    patience_s: float
    min_rate: int
    account: str
    format: str
    compression: str
    registries_conf: str
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    networks: tuple[str, ...]
    max_image_size: int
    on_transient: str
    max_requeues: int
    on_node_fault: str
    max_user_share: Size
    verify: str
    keyring: str
    site_path: str
    site_account: str
    site_lease_s: float
    site_wait_s: float
    site_max_size: Size
    site_max_age_s: float
    peers: str
    peers_min_nodes: int
    peers_port: int
    peers_networks: tuple[str, ...]
    peers_linger_s: float
    peers_rate: int
    peers_munge_socket: str
    prefetch_within_s: float
    prefetch_per_user: int
    prefetch_images: int
    slurm_bin: str
    pyxis: bool
    log_to: str
    library_url: str
    shub_url: str
    s3_url: str
    s3_region: str
    s3_auth_file: str
    s3_shared: bool
    swift_url: str
    swift_auth_file: str
    swift_shared: bool
    registries: Mapping[str, Registry]
    statics: Mapping[str, Static]
    mirrors: Mapping[str, WebMirror]
    aliases: Mapping[str, str]
    fingerprint: str

    def registry(self, host: str) -> Registry:
        """Return what is said about a host (with its port, if the reference has one)."""
        return self.registries.get(host, Registry())

    def service_url(self, scheme: str) -> str:
        """Return the service of references that may leave out their host, "" for other schemes."""
        return {"library": self.library_url, "shub": self.shub_url}.get(scheme, "")


class Key(NamedTuple):
    """One key of the configuration: how it is read, what it is when it is not set."""

    section: str
    name: str
    field: str
    default: str
    read: Callable[[str], Any]
    about: str


# A job can reach these by itself, so by default its Prolog may, too.
INSIDE = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 ::1 fc00::/7"
KEYS = (
    Key("cache", "path", "cache_path", conffiles.DEFAULT_CACHE, read.path,
        "the cache, on one node-local file system; %n is the node's name"),
    Key("cache", "max_size", "max_size", "80%", read.size,
        "all images together, 200G or a percentage of the file system"),
    Key("cache", "high_watermark", "high_watermark", "90%", parse_percent,
        "eviction begins above this part of max_size"),
    Key("cache", "low_watermark", "low_watermark", "80%", parse_percent,
        "eviction ends below this part of max_size"),
    Key("cache", "min_free", "min_free", "5%", read.size,
        "how much of the file system stays free for others"),
    Key("cache", "max_images", "max_images", "10000", read.count,
        "how many images and layers, however small; 0 is any number"),
    Key("cache", "min_age", "min_age_s", "2m", parse_duration,
        "an image unused for less than this is not evicted in the epilog"),
    Key("state", "path", "state_path", conffiles.DEFAULT_STATE, read.path,
        "jobs, leases and downloads in progress, on a tmpfs; %n likewise"),
    Key("stage", "deadline", "deadline_s", "540s", parse_duration,
        "the longest a job is held; keep it below Slurm's timers"),
    Key("stage", "tag_ttl", "tag_ttl_s", "1h", parse_duration,
        "how long a tag is trusted before it is checked again"),
    Key("stage", "error_ttl", "error_ttl_s", "60s", parse_duration,
        "how long a permanent failure is cached; 0 disables it"),
    Key("stage", "connect_timeout", "connect_timeout_s", "10s", parse_duration,
        "the longest wait for a connection"),
    Key("stage", "stall_timeout", "stall_timeout_s", "60s", parse_duration,
        "the longest silence within a download"),
    Key("stage", "patience", "patience_s", "30s", parse_duration,
        "how long a job waits for another job's stalled fetch of the same image"),
    Key("stage", "min_rate", "min_rate", "128K", parse_size,
        "a fetch slower than this, in bytes per second, counts as stalled"),
    Key("stage", "account", "account", "", str,
        "the unprivileged account that fetches; default hpcimg"),
    Key("stage", "format", "format", "auto", read.one_of("auto", "sif", "squashfs"),
        "what OCI images become; auto: sif where there is Apptainer or Singularity"),
    Key("stage", "compression", "compression", "zstd:1", read.compression,
        "how OCI images are packed: lz4, xz, gzip or zstd, with a level as in zstd:19"),
    Key("stage", "registries_conf", "registries_conf", conffiles.DEFAULT_REGISTRIES, read.path,
        "mirrors of registries and what is blocked, in the file that podman reads"),
    Key("policy", "allow", "allow", "*", read.words,
        "patterns of references that may be staged"),
    Key("policy", "deny", "deny", "", read.words,
        "patterns of references that may not, whatever allow says"),
    Key("policy", "allow_addresses", "networks", INSIDE, read.networks,
        "non-public networks that references may reach"),
    Key("policy", "max_image_size", "max_image_size", "0", parse_size,
        "the largest image; 0 is no limit but the cache's"),
    Key("policy", "on_transient", "on_transient", "fail", read.one_of("fail", "requeue"),
        "what happens to a job when a server is down or the deadline passes: fail or requeue"),
    Key("policy", "max_requeues", "max_requeues", "3", read.count,
        "how often one job may be requeued"),
    Key("policy", "on_node_fault", "on_node_fault", "fail", read.one_of("fail", "drain"),
        "drain: let Slurm drain a node whose cache or state directory is found faulty"),
    Key("policy", "max_user_share", "max_user_share", "0", read.size,
        "what may be private to one user, 20G or a percentage of max_size; 0 is no limit"),
    Key("policy", "verify", "verify", "none", read.verifier,
        "none; sif: signatures in SIF files; or the path of a program that is asked"),
    Key("policy", "keyring", "keyring", "", read.optional(read.path),
        "the public keys for sif, a file like Apptainer's pgp-public; its global ones count too"),
    Key("library", "url", "library_url", "https://library.sylabs.io", read.url,
        "the service of library:// references that name no host"),
    Key("shub", "url", "shub_url", "https://singularity-hub.org", read.url,
        "the service of shub:// references that name no host"),
    Key("s3", "url", "s3_url", "", read.optional(read.url),
        "the endpoint of s3:// references; default Amazon's"),
    Key("s3", "region", "s3_region", "", read.optional(read.region),
        "its region; default what the endpoint says"),
    Key("s3", "auth_file", "s3_auth_file", "", read.optional(read.path),
        "the site's credentials for it, a file like ~/.aws/credentials"),
    Key("s3", "shared", "s3_shared", "no", read.boolean,
        "whether what they fetch is for all, not for the job's user alone"),
    Key("swift", "url", "swift_url", "", read.optional(read.url),
        "the storage URL, https://HOST/v1/AUTH_ACCOUNT, for public containers and temp URLs"),
    Key("swift", "auth_file", "swift_auth_file", "", read.optional(read.path),
        "a file with the site's credentials, in the form of an openrc file"),
    Key("swift", "shared", "swift_shared", "no", read.boolean,
        "whether all may use what was fetched with the site's credentials"),
    Key("site", "path", "site_path", "", read.optional(read.path),
        "a directory that all nodes mount, where images are kept for all of them; default none"),
    Key("site", "account", "site_account", "", str,
        "who writes there, not the account that fetches; default root"),
    Key("site", "lease", "site_lease_s", "60s", parse_duration,
        "how long a node that fetches for all may be silent; the same on all nodes"),
    Key("site", "wait", "site_wait_s", "2m", parse_duration,
        "how long a node waits for another one that gets nowhere"),
    Key("site", "max_size", "site_max_size", "80%", read.size,
        "all images there together, 5T or a percentage of the file system"),
    Key("site", "max_age", "site_max_age_s", "30d", parse_duration,
        "an image there that no node has asked for in this time goes"),
    Key("peers", "use", "peers", "auto", read.one_of("auto", "yes", "no"),
        "whether the nodes of a job share what they fetch; auto: where libtorrent is installed"),
    Key("peers", "min_nodes", "peers_min_nodes", "4", read.count,
        "how many nodes a job has at least for that"),
    Key("peers", "port", "peers_port", "8478", read.port,
        "the first of the 16 TCP ports that they use"),
    Key("peers", "networks", "peers_networks", INSIDE, read.networks,
        "the networks that peers may be in"),
    Key("peers", "linger", "peers_linger_s", "60s", parse_duration,
        "how long Prolog goes on sending to the others when its own image is there"),
    Key("peers", "rate", "peers_rate", "0", parse_size,
        "how much a node sends to its peers, in bytes per second; 0 is no limit"),
    Key("peers", "munge_socket", "peers_munge_socket", "", read.optional(read.path),
        "munged's socket if it is not the usual one"),
    Key("prefetch", "within", "prefetch_within_s", "1h", parse_duration,
        "how far `hpcimg prefetch --queue` looks ahead, by Slurm's planned starts"),
    Key("prefetch", "per_user", "prefetch_per_user", "4", read.count,
        "how many images it brings for one user each time"),
    Key("prefetch", "images", "prefetch_images", "20", read.count,
        "how many images it brings each time"),
    Key("slurm", "bin", "slurm_bin", "", read.optional(read.path),
        "the directory of squeue and scontrol if it is not one of the system's"),
    Key("slurm", "pyxis", "pyxis", "no", read.boolean,
        "whether Prolog stages what --container-image of pyxis names, for its importer"),
    Key("log", "to", "log_to", "syslog", read.log_target,
        "syslog, stderr, or the path of a file"),
)  # fmt: skip
NAMED: dict[str, tuple[type, dict[str, Callable[[str], Any]]]] = {
    "registry": (
        Registry,
        {
            "insecure": read.boolean,
            "mirrors": read.mirrors,
            "auth_file": read.path,
            "shared": read.boolean,
        },
    ),
    "static": (Static, {"url": read.url}),
    "mirror": (WebMirror, {"of": read.url, "url": read.url}),
}
SECTIONS = (*dict.fromkeys(key.section for key in KEYS), "alias")
# Read from the raw text on the way to a hit, or by the task prolog's shell.
READ_RAW = (
    ("cache", "path"), ("state", "path"), ("stage", "registries_conf"), ("site", "path"),
    ("slurm", "pyxis"),
)  # fmt: skip
