"""OpenStack Swift with its S3 interface in one process on loopback, objects in a folder.

Usage: python swift_server.py FOLDER PORT ACCOUNT:USER SECRET   (runs where `swift` is installed, with no other package)
Its conditional PUT is not atomic, so nothing that relies on one can pass here.
"""

from swift.common.utils import eventlet_monkey_patch

eventlet_monkey_patch()  # before anything imports sockets or threads

import socket  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from textwrap import dedent  # noqa: E402

import eventlet  # noqa: E402
from eventlet import wsgi  # noqa: E402
from swift.common import storage_policy, utils  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import SwiftHttpProtocol, loadapp  # noqa: E402

BACKENDS = ("account", "container", "object")
FILTERS = {
    "catch_errors": "",
    "gatekeeper": "",
    "listing_formats": "",
    "bulk": "",
    "s3api": "location = us-east-1\ncheck_bucket_owner = false\ns3_acl = false\nallow_multipart_uploads = true",
    "tempauth": "",  # completed with the user
    "copy": "",
    "slo": "minimum_segment_size = 1",
    "dlo": "",
    "symlink": "",
}


class Silent:
    """A log nobody reads."""

    def write(self, *_):
        pass


class Cache:
    """In memcached's place: what the proxy knows of accounts and containers and would ask for at every request."""

    def __init__(self):
        self.known = {}

    def set(self, key, value, **_):
        self.known[key] = value

    def get(self, key, **_):
        return self.known.get(key)

    def delete(self, key, **_):
        self.known.pop(key, None)


def listen(port):
    """A socket on loopback that answers without waiting for more to send."""
    sock = eventlet.listen(("127.0.0.1", port), backlog=512)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def write_settings(folder, ports, user, secret):
    """Rings with one device, and the configuration of the proxy and of the three servers behind it."""
    etc, devices = folder / "etc", folder / "devices"
    etc.mkdir(parents=True, exist_ok=True)
    (devices / "disk").mkdir(parents=True, exist_ok=True)
    policy = "[storage-policy:0]\nname = default\ndefault = yes\n"
    (etc / "swift.conf").write_text(f"[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n{policy}")
    common = dedent(f"""\
        [DEFAULT]
        swift_dir = {etc}
        devices = {devices}
        mount_check = false
        fallocate_reserve = 0
        disable_fallocate = true
        log_level = ERROR
        workers = 0
        """)
    for name, port in ports.items():
        ring = RingBuilder(4, 1, 0)
        place = {"ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1.0, "meta": ""}
        ring.add_dev({"id": 0, "region": 1, "zone": 1} | place)
        ring.rebalance()
        ring.get_ring().save(str(etc / f"{name}.ring.gz"))
        app = f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        (etc / f"{name}.conf").write_text(common + app)
    users = f"user_{user.replace(':', '_')} = {secret} .admin"
    filters = "".join(
        f"[filter:{n}]\nuse = egg:swift#{n}\n{text}\n" for n, text in (FILTERS | {"tempauth": users}).items()
    )
    proxy = f"[pipeline:main]\npipeline = {' '.join(FILTERS)} proxy-server\n[app:proxy-server]\nuse = egg:swift#proxy\n"
    accounts = "account_autocreate = true\nallow_account_management = true\n"
    (etc / "proxy.conf").write_text(common + proxy + accounts + filters)
    return etc


def serve(sock, config):
    """Answer requests for ever."""
    app, cache = loadapp(str(config), global_conf={"log_statsd_host": ""}), Cache()

    def caching(environ, start_response):
        environ["swift.cache"] = cache
        return app(environ, start_response)

    pool = eventlet.GreenPool(256)
    wsgi.server(sock, caching, Silent(), protocol=SwiftHttpProtocol, log_output=False, custom_pool=pool)


def main(folder, port, user, secret):
    """Start the four servers."""
    sockets = {name: listen(0) for name in BACKENDS}
    etc = write_settings(folder, {name: sock.getsockname()[1] for name, sock in sockets.items()}, user, secret)
    utils.set_swift_dir(str(etc))
    storage_policy.reload_storage_policies()
    for name, sock in sockets.items():
        eventlet.spawn(serve, sock, etc / f"{name}.conf")
    serve(listen(port), etc / "proxy.conf")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), sys.argv[3], sys.argv[4])
