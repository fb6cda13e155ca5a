"""What Cinder and Nova do with castellan, and other programs with python-barbicanclient: keys made, stored, read, given to others and
deleted. Ends with 0 when all went as it must.

Usage: castellan_story.py AUTH_URL KEY_MANAGER_URL CA_FILE < PASSWORD   (user admin of project admin; CA_FILE may be empty)
"""

import sys

from barbicanclient import client as barbican_client
from barbicanclient import exceptions as barbican_exceptions
from castellan import key_manager, options
from castellan.common import exception
from castellan.common.credentials.keystone_password import KeystonePassword
from castellan.common.objects import opaque_data, passphrase, symmetric_key
from keystoneauth1 import loading, session
from oslo_config import cfg

AUTH_URL, KEY_MANAGER, CA = sys.argv[1:]
PASSWORD = sys.stdin.read().strip()


def expect(found, wanted, what):
    if found != wanted:
        sys.exit(f"{what}: {found!r}, not {wanted!r}")


def refused(kind, call, *args, **kwargs):
    try:
        found = call(*args, **kwargs)
    except kind:
        return
    sys.exit(f"{call.__name__}{args[1:]} was not refused: {found!r}")


def castellan():
    conf = cfg.ConfigOpts()
    conf([], project="story", default_config_files=[])
    options.set_defaults(conf, backend="barbican", barbican_endpoint=KEY_MANAGER, auth_endpoint=AUTH_URL)
    if CA:
        conf.set_override("verify_ssl_path", CA, "barbican")
    manager = key_manager.API(conf)
    context = KeystonePassword(
        PASSWORD,
        auth_url=AUTH_URL,
        username="admin",
        user_domain_name="Default",
        project_name="admin",
        project_domain_name="Default",
    )
    # A volume's key, as Cinder orders it and Nova reads it.
    key_id = manager.create_key(context, algorithm="AES", length=256, name="volume")
    key = manager.get(context, key_id)
    expect(len(key.get_encoded()), 32, "bytes of the key")
    expect((key.algorithm.lower(), key.bit_length, key.name), ("aes", 256, "volume"), "the key")
    expect(manager.get(context, key_id).get_encoded(), key.get_encoded(), "the key, read again")
    expect(manager.get(context, key_id, metadata_only=True).get_encoded(), None, "metadata alone")
    # Cinder clones an encrypted volume by storing its key once more.
    copy_id = manager.store(context, symmetric_key.SymmetricKey("aes", 256, key.get_encoded(), name="clone"))
    expect(manager.get(context, copy_id).get_encoded(), key.get_encoded(), "the clone's key")
    for kind, value in ((passphrase.Passphrase, "open sesame"), (opaque_data.OpaqueData, b"\x00\xff")):
        plain = value.encode() if isinstance(value, str) else value
        stored = manager.store(context, kind(plain, name="other"))
        expect(bytes(manager.get(context, stored).get_encoded()), plain, kind.__name__)
        manager.delete(context, stored)
    names = sorted(one.name for one in manager.list(context))
    expect(names, ["clone", "volume"], "the list")
    private, public = manager.create_key_pair(context, "rsa", 2048, name="pair")
    expect(manager.get(context, private).algorithm.lower(), "rsa", "the private key")
    if len(manager.get(context, public).get_encoded()) < 200:
        sys.exit("the public key is too short")
    # A key in use is not deleted by accident.
    consumer = {"service": "cinder", "resource_type": "volume", "resource_id": "v-1"}
    manager.add_consumer(context, key_id, consumer)
    expect([one["resource_id"] for one in manager.get(context, key_id).consumers], ["v-1"], "consumers")
    refused(exception.KeyManagerError, manager.delete, context, key_id)
    manager.remove_consumer(context, key_id, consumer)
    for one in (key_id, copy_id, private, public):
        manager.delete(context, one)
    refused(exception.ManagedObjectNotFoundError, manager.get, context, key_id)
    refused(exception.ManagedObjectNotFoundError, manager.delete, context, key_id)


def library():
    plugin = loading.get_plugin_loader("password").load_from_options(
        auth_url=AUTH_URL,
        username="admin",
        password=PASSWORD,
        user_domain_name="Default",
        project_name="admin",
        project_domain_name="Default",
    )
    client = barbican_client.Client(session=session.Session(auth=plugin, verify=CA or True))
    secret = client.secrets.create(name="text", payload="open sesame")
    secret.store()
    refused(barbican_exceptions.HTTPClientError, client.secrets.update, secret.secret_ref, "another")
    read = client.secrets.get(secret.secret_ref)
    expect((read.payload, read.status, read.name), ("open sesame", "ACTIVE", "text"), "the secret")
    later = client.secrets.create(name="later")
    later.store()
    client.secrets.update(later.secret_ref, "second step")
    expect(client.secrets.get(later.secret_ref).payload, "second step", "the two-step secret")
    order = client.orders.create_key(name="ordered", algorithm="aes", bit_length=256, mode="cbc",
                                     payload_content_type="application/octet-stream")
    order = client.orders.get(order.submit())
    expect((order.status, order.error_reason), ("ACTIVE", None), "the order")
    expect(len(client.secrets.get(order.secret_ref).payload), 32, "bytes of the ordered key")
    box = client.containers.create(name="box", secrets={"one": read, "two": later})
    box = client.containers.get(box.store())
    expect(sorted(box.secrets), ["one", "two"], "the container")
    acl = client.acls.create(entity_ref=secret.secret_ref, users=["a" * 32], project_access=False)
    acl.submit()
    found = client.acls.get(entity_ref=secret.secret_ref)
    expect((found.read.users, found.read.project_access), (["a" * 32], False), "the access list")
    found.remove()
    expect(client.acls.get(entity_ref=secret.secret_ref).read.project_access, True, "no access list")
    pages = [len(client.secrets.list(limit=1, offset=offset)) for offset in range(4)]
    expect(pages, [1, 1, 1, 0], "pages of one")
    for one in (box, order, client.secrets.get(order.secret_ref), later, secret):
        one.delete()
    expect(client.secrets.list(), [], "what is left")


castellan()
library()
