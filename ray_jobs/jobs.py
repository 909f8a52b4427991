"""Ray's job interface, as `muon sweep submit` needs it: errors in one line each, and a job's log followed to its end.

Ray answers some questions only after minutes, or with a page of text; so who answers at an address, which Ray it is and
whether it takes our token is asked first, by plain HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from ray_jobs.ray_token import FILE, find_token, use_token
from ray_jobs.stop_signals import deferred

ANSWER_S = 5.0
STOP_WAIT_S = 90  # from a job's SIGTERM to its SIGKILL: its runs are waited for up to a minute; Ray's default is 3 s
TRIES, PAUSE_S = 5, 2.0  # to go on with a log whose connection was lost
EXIT_STOPPED, EXIT_UNREACHABLE = 130, 7


def check_url(address: str) -> str:
    """`address` without a slash at its end. Raises ValueError unless it is http://host:port."""
    parts = urlsplit(address)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path not in ("", "/")
        or "@" in parts.netloc
    ):
        raise ValueError(
            f"--address {address!r}: give the address of Ray's dashboard on the head, such as http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def check_head(address: str) -> None:
    """Raises ConnectionError, with the remedy, unless a Ray of our release answers at `address` and takes our token."""
    token, where = find_token()
    request = urllib.request.Request(f"{address}/api/version")  # noqa: S310  # of the scheme http
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
            found = json.load(answer)["ray_version"]
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(address, error.code, token, where) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"nothing answers at {address} ({getattr(reason, 'strerror', None) or reason}); is the head up, and the "
            "tunnel open? --tunnel cluster.yaml opens one"
        ) from error
    except (ValueError, LookupError, TypeError):
        raise _no_ray(address) from None
    if found != (ours := version("ray")):
        raise ConnectionError(
            f"the cluster at {address} runs Ray {found}, this machine has {ours}; install the same release on both"
        )


def _refused(address: str, code: int, token: str | None, where: str) -> ConnectionError:
    if code not in (401, 403):
        return _no_ray(address)
    copy = f"copy the head's {FILE} to the same place here"
    remedy = copy if where == FILE else f"correct that, or unset it and {copy}"
    if token is None:
        return ConnectionError(f"the cluster at {address} asks for a token, and there is none in {where}; {remedy}")
    return ConnectionError(f"the cluster at {address} does not take the token of {where}; {remedy}")


def _no_ray(address: str) -> ConnectionError:
    return ConnectionError(f"what answers at {address} is no dashboard of Ray; give the head's, port 8265 by default")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, or how it ended: SUCCEEDED, FAILED, STOPPED."""
    metadata: Mapping[str, str]
    exit_code: int | None
    """Of its program, if that came to an end by itself."""
    message: str

    @property
    def is_over(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")

    @property
    def outcome(self) -> int:
        """What a command that waited for it ends with."""
        if self.status == "STOPPED":
            return EXIT_STOPPED
        if self.status == "SUCCEEDED":
            return 0
        return EXIT_UNREACHABLE if self.exit_code is None else self.exit_code


class Jobs:
    """The jobs of the cluster at `address`. Each call raises ConnectionError if it cannot be carried out."""

    def __init__(self, address: str) -> None:
        _talk_directly(address)
        check_head(address)
        use_token()
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # which go over any address given
            os.environ.pop(name, None)
        with deferred():  # what is left of a Ray that is half imported fails once more at exit
            from ray.job_submission import JobSubmissionClient
        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        with self._in_one_line():
            self._client = JobSubmissionClient(address)

    def find(self, id_: str) -> Job | None:
        """The job `id_`; None if there is none."""
        with self._in_one_line():
            try:
                info = self._client.get_job_info(id_)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise
        status = getattr(info.status, "value", info.status)
        return Job(id_, str(status), info.metadata or {}, info.driver_exit_code, info.message or "")

    def submit(self, id_: str, entrypoint: str, package: Path, metadata: Mapping[str, str]) -> bool:
        """Start a job in an unpacked copy of `package`; returns False if there is one of this id already."""
        environment = {"working_dir": str(package), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        with self._in_one_line():
            try:
                self._client.submit_job(
                    submission_id=id_, entrypoint=entrypoint, runtime_env=environment, metadata=dict(metadata)
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def forget(self, id_: str) -> None:
        """Drop a job that is over, so that its id is free."""
        with self._in_one_line():
            self._client.delete_job(id_)

    def follow(self, id_: str, begin: str, show: Callable[[str], None]) -> Job:
        """`show` what the job prints after the line that ends with `begin`, until it is over; returns how it ended.

        A log begins with what an earlier job of the same id has printed.
        """
        log = _Log(begin, show)
        failures = 0
        while True:
            before = log.received
            with contextlib.suppress(ConnectionError), self._in_one_line():
                asyncio.run(self._tail(id_, log))
            try:
                job = self.find(id_)
            except ConnectionError as error:
                failures = 0 if log.received > before else failures + 1
                if failures == TRIES:
                    raise ConnectionError(f"{error}; job {id_} goes on, the same command follows it again") from error
            else:
                if job is None:
                    raise ConnectionError(
                        f"the cluster at {self.address} knows no job {id_} any more; was it restarted?"
                    )
                if job.is_over:
                    log.finish()
                    return job
            time.sleep(PAUSE_S)

    async def _tail(self, id_: str, log: _Log) -> None:
        log.rewind()
        async for text in self._client.tail_job_logs(id_):
            log.add(text)

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Turns the errors of Ray and of what it speaks HTTP with into ConnectionError."""
        import aiohttp
        import requests
        from ray.exceptions import RayError

        try:
            yield
        except (requests.RequestException, aiohttp.ClientError, RayError, RuntimeError) as error:
            words = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConnectionError(f"the cluster at {self.address}: {words[:300]}") from error


class _Log:
    """Shows what is new in a log, after the line that ends in `begin`; each connection sends it all from the start."""

    def __init__(self, begin: str, show: Callable[[str], None]) -> None:
        self._begin, self._show = begin, show
        self.received = 0
        self._position = 0
        self._line = ""
        self._is_ours = False

    def rewind(self) -> None:
        """Another connection begins."""
        self._position = 0

    def add(self, text: str) -> None:
        new = text[max(0, self.received - self._position) :]
        self._position += len(text)
        self.received = max(self.received, self._position)
        *lines, self._line = (self._line + new).split("\n")
        for line in lines:
            self._tell(line)

    def finish(self) -> None:
        """The last line may have no end."""
        if self._line:
            self._tell(self._line)

    def _tell(self, line: str) -> None:
        if self._is_ours:
            self._show(line)
        self._is_ours = self._is_ours or line.endswith(self._begin)


def _talk_directly(address: str) -> None:
    """Through no proxy, which would read the token."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), urlsplit(address).hostname]))
