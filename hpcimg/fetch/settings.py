"""What the site says about one fetch."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg.http.addresses import Reach


class Place(NamedTuple):
    """A repository that an image can be read from: a mirror's, or that of its own registry.

    `name` is `HOST[:PORT]/REPOSITORY`; `insecure` and `credentials` are as in Settings.
    `mirror` says that it stands for another registry. `authorities` and `client` are
    as in `hpcimg.http.certsd.Certificates`.
    """

    name: str
    insecure: bool = False
    credentials: str = ""
    mirror: bool = False
    authorities: str = ""
    client: str = ""


class Mirror(NamedTuple):
    """An address in whose place there is another one: of all that begins with it and a slash."""

    of: str
    url: str


class Settings(NamedTuple):
    """What the site says about one fetch. Times are in seconds.

    `deadline` is a time.monotonic() value, which all processes of a node share;
    `tries` is how often a request is made before it is given up; `insecure`
    that the host is spoken to in plain http; `service` is the address of the
    service that the site configured for a scheme whose references name no host,
    `region` the part of it that is meant, where it has several.
    `credentials` is the text of the site's own credentials file for this place,
    "" for none. `as_user` says that the fetch runs with the rights of the job's
    user, and that this user's own credentials files may be read. `places` are
    where the image of a registry is looked for, in this order, its own registry
    last, unless mirrors alone may be asked; () stands for that one alone. With
    `login_needed` a registry is asked only where there is a login for it; with `login_next`
    another login is tried before this fetch waits for a registry that is too busy for who
    asks; `wait_s` is how long that one wished to be left alone. `networks` and
    `site_hosts` are what may be connected to besides public addresses: see
    `hpcimg.http.addresses.Reach`. `mirrors` are those of web servers, in the order in which
    they are asked.
    """

    tries: int
    deadline: float
    connect_timeout_s: float
    stall_timeout_s: float
    insecure: bool = False
    service: str = ""
    region: str = ""
    credentials: str = ""
    as_user: bool = False
    places: tuple[Place, ...] = ()
    login_needed: bool = False
    login_next: bool = False
    wait_s: float = 0.0
    networks: tuple[str, ...] = ()
    site_hosts: tuple[str, ...] = ()
    mirrors: tuple[Mirror, ...] = ()

    def address(self, host: str) -> str:
        """Return how the host of a reference is spoken to."""
        return f"{'http' if self.insecure else 'https'}://{host}"

    def reach(self) -> Reach:
        """Return what may be connected to."""
        return Reach(self.networks, self.site_hosts)
