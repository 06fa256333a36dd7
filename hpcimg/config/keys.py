"""The keys of the configuration: parser, default, and description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hpcimg.config import files as conffiles
from hpcimg.config import values as read
from hpcimg.config.values import Size
from hpcimg.units import parse_duration, parse_percent, parse_size


class Registry(NamedTuple):
    """The site's settings for one registry or web host.

    `auth_file` has the site's credentials for it, "" for none; `shared` says whether an image
    fetched with them is shared, or private to the requester. `mirrors` are tried first, each
    `HOST[:PORT][/PREFIX]`. None means not set: then registries.conf applies.
    """

    insecure: bool | None = None
    auth_file: str = ""
    shared: bool = False
    mirrors: tuple[str, ...] | None = None


class Static(NamedTuple):
    """A static registry under a scheme that the site defines: the address of its web pages."""

    url: str = ""


class WebMirror(NamedTuple):
    """Tried before a web server: `url` replaces the beginning `of` of an address."""

    of: str = ""
    url: str = ""


class Config(NamedTuple):
    """All values, parsed. Times are in seconds."""

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
    peers_wait_s: float
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
        """Return the settings for a host (with its port, if the reference has one)."""
        return self.registries.get(host, Registry())

    def service_url(self, scheme: str) -> str:
        """Return the service for references that may omit their host, "" for other schemes."""
        return {"library": self.library_url, "shub": self.shub_url}.get(scheme, "")


class Key(NamedTuple):
    """One key of the configuration: its parser, its default, its description."""

    section: str
    name: str
    field: str
    default: str
    read: Callable[[str], Any]
    about: str


# A job can connect to these itself, so by default its Prolog may, too.
INSIDE = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 ::1 fc00::/7"
KEYS = (
    Key("cache", "path", "cache_path", conffiles.DEFAULT_CACHE, read.path,
        "the cache, on one node-local file system; %n is the node's name"),
    Key("cache", "max_size", "max_size", "80%", read.size,
        "the maximum for all images, 200G or a percentage of the file system"),
    Key("cache", "high_watermark", "high_watermark", "90%", parse_percent,
        "eviction starts above this percentage of max_size"),
    Key("cache", "low_watermark", "low_watermark", "80%", parse_percent,
        "eviction ends below this percentage of max_size"),
    Key("cache", "min_free", "min_free", "5%", read.size,
        "free space to leave for others on the file system"),
    Key("cache", "max_images", "max_images", "10000", read.count,
        "the maximum number of images and layers; 0 is unlimited"),
    Key("cache", "min_age", "min_age_s", "2m", parse_duration,
        "Epilog does not evict images used within this time"),
    Key("state", "path", "state_path", conffiles.DEFAULT_STATE, read.path,
        "jobs, leases and downloads in progress, on a tmpfs; %n likewise"),
    Key("stage", "deadline", "deadline_s", "540s", parse_duration,
        "the longest time that a job is held; keep it below Slurm's timeouts"),
    Key("stage", "tag_ttl", "tag_ttl_s", "1h", parse_duration,
        "how long a tag is trusted before it is checked again"),
    Key("stage", "error_ttl", "error_ttl_s", "60s", parse_duration,
        "how long a permanent failure is cached; 0 disables it"),
    Key("stage", "connect_timeout", "connect_timeout_s", "10s", parse_duration,
        "the longest wait for a connection"),
    Key("stage", "stall_timeout", "stall_timeout_s", "60s", parse_duration,
        "the longest time without data during a download"),
    Key("stage", "patience", "patience_s", "30s", parse_duration,
        "how long a job waits for another job's stalled fetch of the same image"),
    Key("stage", "min_rate", "min_rate", "128K", parse_size,
        "a fetch slower than this, in bytes per second, counts as stalled"),
    Key("stage", "account", "account", "", str,
        "the unprivileged account that fetches; default hpcimg"),
    Key("stage", "format", "format", "auto", read.one_of("auto", "sif", "squashfs"),
        "the format of converted images; auto: sif if Apptainer or Singularity is installed"),
    Key("stage", "compression", "compression", "zstd:1", read.compression,
        "the compression of converted images: lz4, xz, gzip or zstd, with a level as in zstd:19"),
    Key("stage", "registries_conf", "registries_conf", conffiles.DEFAULT_REGISTRIES, read.path,
        "registry mirrors and blocked registries, in the file that podman reads"),
    Key("policy", "allow", "allow", "*", read.words,
        "patterns of references that may be staged"),
    Key("policy", "deny", "deny", "", read.words,
        "patterns of references that must not be staged, whatever allow says"),
    Key("policy", "allow_addresses", "networks", INSIDE, read.networks,
        "non-public networks that references may reach"),
    Key("policy", "max_image_size", "max_image_size", "0", parse_size,
        "the maximum size of an image; 0: limited only by the cache"),
    Key("policy", "on_transient", "on_transient", "fail", read.one_of("fail", "requeue"),
        "what happens to a job when a server is down or the deadline passes: fail or requeue"),
    Key("policy", "max_requeues", "max_requeues", "3", read.count,
        "how many times a job may be requeued"),
    Key("policy", "on_node_fault", "on_node_fault", "fail", read.one_of("fail", "drain"),
        "drain: let Slurm drain a node whose cache or state directory is found faulty"),
    Key("policy", "max_user_share", "max_user_share", "0", read.size,
        "the maximum private to one user, 20G or a percentage of max_size; 0 is no limit"),
    Key("policy", "verify", "verify", "none", read.verifier,
        "none; sif: check signatures in SIF files; or the path of a program that decides"),
    Key("policy", "keyring", "keyring", "", read.optional(read.path),
        "the public keys for sif, a file like Apptainer's pgp-public, besides its global keyring"),
    Key("library", "url", "library_url", "https://library.sylabs.io", read.url,
        "the service for library:// references without a host"),
    Key("shub", "url", "shub_url", "https://singularity-hub.org", read.url,
        "the service for shub:// references without a host"),
    Key("s3", "url", "s3_url", "", read.optional(read.url),
        "the endpoint of s3:// references; default Amazon's"),
    Key("s3", "region", "s3_region", "", read.optional(read.region),
        "its region; default: derived from the endpoint"),
    Key("s3", "auth_file", "s3_auth_file", "", read.optional(read.path),
        "the site's credentials for it, a file like ~/.aws/credentials"),
    Key("s3", "shared", "s3_shared", "no", read.boolean,
        "whether what they fetch is shared by all users"),
    Key("swift", "url", "swift_url", "", read.optional(read.url),
        "the storage URL, https://HOST/v1/AUTH_ACCOUNT, for public containers and temp URLs"),
    Key("swift", "auth_file", "swift_auth_file", "", read.optional(read.path),
        "the site's credentials, in the format of an openrc file"),
    Key("swift", "shared", "swift_shared", "no", read.boolean,
        "whether what they fetch is shared by all users"),
    Key("site", "path", "site_path", "", read.optional(read.path),
        "a directory that all nodes mount, where images are kept for all of them; default none"),
    Key("site", "account", "site_account", "", str,
        "the account that writes there, not the one that fetches; default root"),
    Key("site", "lease", "site_lease_s", "60s", parse_duration,
        "how long a node that fetches for all may be silent; equal on all nodes"),
    Key("site", "wait", "site_wait_s", "2m", parse_duration,
        "how long a node waits for another node's stalled fetch"),
    Key("site", "max_size", "site_max_size", "80%", read.size,
        "the maximum for all images there, 5T or a percentage of the file system"),
    Key("site", "max_age", "site_max_age_s", "30d", parse_duration,
        "images there that no node has requested in this time are evicted"),
    Key("peers", "use", "peers", "auto", read.one_of("auto", "yes", "no"),
        "whether the nodes of a job share what they fetch; auto: if libtorrent is installed;"
        " yes: they also agree on what a tag stands for"),
    Key("peers", "min_nodes", "peers_min_nodes", "4", read.count,
        "the minimum number of nodes of such a job"),
    Key("peers", "port", "peers_port", "8478", read.port,
        "the first of the 16 TCP ports that they use"),
    Key("peers", "networks", "peers_networks", INSIDE, read.networks,
        "the networks that peers may be in"),
    Key("peers", "wait", "peers_wait_s", "5s", parse_duration,
        "how much later than the others a node's Prolog may start before they stop waiting for it"),
    Key("peers", "linger", "peers_linger_s", "60s", parse_duration,
        "how long Prolog keeps sending to the others after its own image has arrived"),
    Key("peers", "rate", "peers_rate", "0", parse_size,
        "the maximum that a node sends to its peers, in bytes per second; 0 is no limit"),
    Key("peers", "munge_socket", "peers_munge_socket", "", read.optional(read.path),
        "munged's socket if it is not the usual one"),
    Key("prefetch", "within", "prefetch_within_s", "1h", parse_duration,
        "how far `hpcimg prefetch --queue` looks ahead, by Slurm's planned starts"),
    Key("prefetch", "per_user", "prefetch_per_user", "4", read.count,
        "how many images it stages per user each time"),
    Key("prefetch", "images", "prefetch_images", "20", read.count,
        "how many images it stages each time"),
    Key("slurm", "bin", "slurm_bin", "", read.optional(read.path),
        "the directory of squeue and scontrol if it is not one of the system's"),
    Key("slurm", "pyxis", "pyxis", "no", read.boolean,
        "whether Prolog stages images given to --container-image of pyxis, for its importer"),
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
    ("slurm", "pyxis"), ("peers", "use"),
)  # fmt: skip
