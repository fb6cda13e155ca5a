"""os-brick's connector and volume encryptor, as Nova drives them, again and again; prints what each step took, in milliseconds.

Reads one JSON object from standard input: `portal`, `iqn`, `lun`, `key` (hex; the passphrase of the LUKS2 header that is there)
and `rounds`. It has its privileges in its own process: starting its daemon for them would count against it.
"""

import json
import subprocess
import sys
import time

from castellan.common.objects import symmetric_key
from os_brick import encryptors
from os_brick import privileged
import os_brick
from os_brick.initiator import connector
from oslo_concurrency import lockutils
from oslo_concurrency import processutils
from oslo_config import cfg

ENCRYPTION = {
    "provider": "luks2",
    "cipher": "aes-xts-plain64",
    "key_size": 512,
    "control_location": "front-end",
    "encryption_key_id": "the key",
}


def quiet():
    """As the other sides begin: udev has nothing left to do. Not counted."""
    subprocess.run(["udevadm", "settle", "-t", "60"], check=True)


class Keys:
    """The key manager: one key, and no time."""

    def __init__(self, key):
        self.key = symmetric_key.SymmetricKey("AES", len(key) * 8, key)

    def get(self, context, key_id):
        return self.key


def timed(step, function, *arguments, **named):
    start = time.monotonic()
    result = function(*arguments, **named)
    print("STEP brick_%s %.3f" % (step, (time.monotonic() - start) * 1000), flush=True)
    return result


def main():
    order = json.load(sys.stdin)
    cfg.CONF([], project="bench")
    lockutils.set_defaults("/run/os-brick-locks")
    os_brick.setup(cfg.CONF)
    for context in (privileged.default, privileged.brick_privsep_hide_output):
        context.set_client_mode(False)
    iscsi = connector.InitiatorConnector.factory("ISCSI", "", use_multipath=False)
    where = {
        "target_discovered": False,
        "target_portal": order["portal"],
        "target_iqn": order["iqn"],
        "target_lun": order["lun"],
        "volume_id": "7d4ea0d5-3fd1-4c68-9a0e-0cf4a9a3c0d1",
        "encrypted": True,
    }
    for number in range(order["rounds"]):
        quiet()
        attach = time.monotonic()
        found = timed("connect", iscsi.connect_volume, dict(where))
        info = {"driver_volume_type": "iscsi", "data": dict(where, device_path=found["path"])}
        encryptor = encryptors.get_volume_encryptor(
            root_helper="",
            connection_info=info,
            keymgr=Keys(bytes.fromhex(order["key"])),
            execute=processutils.execute,
            **ENCRYPTION,
        )
        timed("open", encryptor.attach_volume, None, **ENCRYPTION)
        detach = time.monotonic()
        print("STEP brick_attach %.3f" % ((detach - attach) * 1000), flush=True)
        with open(found["path"], "rb") as disk:
            disk.read(4096)
        quiet()
        detach = time.monotonic()
        timed("close", encryptor.detach_volume, **ENCRYPTION)
        timed("disconnect", iscsi.disconnect_volume, dict(where), found)
        print("STEP brick_detach %.3f" % ((time.monotonic() - detach) * 1000), flush=True)


main()
