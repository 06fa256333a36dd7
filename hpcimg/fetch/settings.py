"""The site's settings for one fetch."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg.http.addresses import Reach


class Place(NamedTuple):
    """A repository to read an image from: a mirror's, or that of the registry itself.

    `name` is `HOST[:PORT]/REPOSITORY`; `insecure` and `credentials` are as in Settings. `mirror`
    says that it stands for another registry. `authorities` and `client` are as in
    `hpcimg.http.certsd.Certificates`.
    """

    name: str
    insecure: bool = False
    credentials: str = ""
    mirror: bool = False
    authorities: str = ""
    client: str = ""


class Mirror(NamedTuple):
    """Replaces the beginning of addresses: all that begin with `of` and a slash."""

    of: str
    url: str


class Settings(NamedTuple):
    """The site's settings for one fetch. Times are in seconds.

    `deadline` is a time.monotonic() value, which all processes of a node share; `tries` is the
    number of attempts for a request; `insecure` means plain http; `service` is the address of the
    configured service for a scheme whose references name no host, `region` its region, if it has
    several. `credentials` is the text of the site's credentials file for this place, "" for none.
    `as_user` means that the fetch runs with the rights of the job's user, and may read this user's
    own credentials files. `places` are the repositories to try for an image in a registry, in this
    order, with the registry itself last, unless only mirrors may be used; () means the registry
    alone. With `login_needed` a registry is asked only if there is a login for it; with
    `login_next` another login is tried before this fetch waits for a registry that is too busy for
    this requester; `wait_s` is how long it asked to be left alone. `networks` and `site_hosts` may
    be connected to in addition to public addresses: see `hpcimg.http.addresses.Reach`. `mirrors`
    are those of web servers, in the order in which they are tried.
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
        """Return the beginning of a URL for the host of a reference."""
        return f"{'http' if self.insecure else 'https'}://{host}"

    def reach(self) -> Reach:
        """Return the addresses that may be connected to."""
        return Reach(self.networks, self.site_hosts)
