"""os-brick's own volume encryptors over a device of this node, as Nova drives them.

Reads one JSON object from standard input: `device`, `provider`, `cipher`, `key_size` and `key` (hex) as Cinder and Barbican
would give them; `write` (text, or null) goes to the beginning of the decrypted device after `read` bytes of it were printed.
"""

import json
import os
import sys

from castellan.common.objects import symmetric_key
from os_brick import encryptors
from oslo_concurrency import processutils

# Where Nova would have the by-path link: os-brick replaces it, and udev must not fight for it.
LINK = "/run/os-brick"


class Keys:
    """The key manager: one key."""

    def __init__(self, key):
        self.key = symmetric_key.SymmetricKey("AES", len(key) * 8, key)

    def get(self, context, key_id):
        return self.key


def main():
    order = json.load(sys.stdin)
    if os.path.islink(LINK):
        os.unlink(LINK)
    os.symlink(order["device"], LINK)
    encryption = {
        "provider": order["provider"],
        "cipher": order["cipher"],
        "key_size": order["key_size"],
        "control_location": "front-end",
        "encryption_key_id": "the key",
    }
    encryptor = encryptors.get_volume_encryptor(
        root_helper="",
        connection_info={"driver_volume_type": "iscsi", "data": {"device_path": LINK}},
        keymgr=Keys(bytes.fromhex(order["key"])),
        execute=processutils.execute,
        **encryption,
    )
    encryptor.attach_volume(None, **encryption)
    with open(LINK, "r+b", buffering=0) as disk:
        found = disk.read(order["read"])
        if order["write"] is not None:
            disk.seek(0)
            disk.write(order["write"].encode())
            os.fsync(disk.fileno())
        size = disk.seek(0, os.SEEK_END)
    encryptor.detach_volume(**encryption)
    print(json.dumps({"read": found.hex(), "size": size}))


main()
