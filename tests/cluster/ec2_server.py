"""AWS as moto emulates it, except that EC2 lacks the capacity that a file says it lacks, and tells what was asked for.

Usage: .venv-ec2/bin/python tests/cluster/ec2_server.py ADDRESS PORT FOLDER
FOLDER/lacking has a line for each `TYPE MARKET` that is not to be had (MARKET: spot or on-demand). FOLDER/asked gets a
JSON object for each request for instances: type, market, zone, profile, image, whether it was refused, and when.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses.instances import InstanceResponse
from moto.server import main

ADDRESS, PORT, FOLDER = sys.argv[1], sys.argv[2], Path(sys.argv[3])
granted = InstanceResponse.run_instances


def run_instances(self: InstanceResponse):  # type: ignore[no-untyped-def]  # of moto, which this environment has not
    """As moto, where there is capacity."""
    kind = self._get_param("InstanceType")
    market = self._get_param("InstanceMarketOptions.MarketType") or "on-demand"
    subnet = self.ec2_backend.get_subnet(self._get_param("SubnetId"))
    refused = f"{kind} {market}" in (FOLDER / "lacking").read_text().splitlines()
    profile, image = self._get_param("IamInstanceProfile.Name"), self._get_param("ImageId")
    asked = {"type": kind, "market": market, "zone": subnet.availability_zone, "profile": profile, "image": image}
    with (FOLDER / "asked").open("a") as log:
        log.write(json.dumps(asked | {"refused": refused, "at": time.time()}) + "\n")
    if refused:
        raise EC2ClientError("InsufficientInstanceCapacity", f"no {kind} as {market} in {subnet.availability_zone}")
    return granted(self)


InstanceResponse.run_instances = run_instances
main(["-H", ADDRESS, "-p", PORT])
