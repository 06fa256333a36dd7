"""How the tests' own requests reach a daemon that may be busy."""

from __future__ import annotations

from requests import Session
from requests.adapters import HTTPAdapter
from urllib3.util import Retry


def patient_session() -> Session:
    """Return a session that asks again, for a minute, where a daemon answers "try again".

    It uses neither proxies nor credentials of whoever runs the tests.
    """
    session = Session()
    session.trust_env = False
    again = Retry(
        total=8,
        connect=0,
        read=0,
        backoff_factor=0.2,
        status_forcelist=(500, 503),
        allowed_methods=None,
        raise_on_status=False,
    )
    session.mount("http://", HTTPAdapter(max_retries=again))
    return session
